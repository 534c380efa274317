"""Tasks of lm-evaluation-harness by their names or from local files, made ready to be asked."""

from __future__ import annotations

import contextlib
import random
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from pipeline.benchmarks.lm_eval.options import CHOICE, LmEvalOptions
from pipeline.data.errors import DataError
from pipeline.data.json_files import read_rows

UNFILTERED = "none"  # what the harness calls answers that no filter has changed
LETTERS = ("A", "B", "C", "D")
FOLDER = Path(__file__).parents[3] / "workflow_configs"  # where a relative include_path starts


@dataclass
class Loaded:
    """The harness's tasks by name, and how the groups that are reported are made of them.

    Attributes:
        tasks: task name -> the harness's task
        groups: task name -> group name -> metric -> ``documents`` or ``tasks``: what weighs equally in the group's mean
    """

    tasks: dict[str, Any]
    groups: dict[str, dict[str, dict[str, str]]]


def load(data: Path, options: LmEvalOptions) -> Loaded:
    """Load every task.

    Args:
        data: folder that the prepare step wrote, with the questions of prepared tasks
        options: which tasks, and how they are asked

    Raises:
        DataError: a task is not known or cannot be asked here, or its data are not on this machine
    """
    from lm_eval.api.task import ConfigurableTask

    _sandbox()
    loaded = Loaded({}, {})
    # Some tasks shuffle choices as they are read: in the same way on every rank, as the harness's own program does.
    random.seed(0)
    for name in options.prepared:
        loaded.tasks[name] = ConfigurableTask(config=_prepared(name, data, options.prompt_format))
    names = [name for name in options.tasks if name not in options.prepared]
    if names:
        with tempfile.TemporaryDirectory() as cache:
            _load_named(names, options, loaded, cache)
    for name, task in loaded.tasks.items():
        if getattr(task, "UNSAFE_CODE", False):
            raise DataError(f"task {name!r}: runs code that a model has written, which is not done here")
        if getattr(task, "MULTIMODAL", False):
            raise DataError(f"task {name!r}: asks about pictures or sounds, and the models are of text")
        given = task.get_config("num_fewshot")
        if options.num_fewshot is not None and given != 0:
            task.set_config(key="num_fewshot", value=options.num_fewshot)
        elif given is None:
            task.set_config(key="num_fewshot", value=0)
        task.set_fewshot_seed(seed=options.seed)
    return loaded


def _sandbox() -> None:
    """Let the harness render templates in Jinja's sandbox. Its own environment runs whatever a template says, so that a
    text that gets into one could run code."""
    from jinja2.sandbox import SandboxedEnvironment
    from lm_eval import utils

    if not isinstance(utils.env, SandboxedEnvironment):
        theirs = utils.env
        utils.env = SandboxedEnvironment(undefined=theirs.undefined, keep_trailing_newline=theirs.keep_trailing_newline)
        utils.env.filters = theirs.filters


def _prepared(name: str, data: Path, prompt_format: str) -> dict[str, Any]:
    """A task over the questions that the prepare step wrote; no few-shot examples."""
    from datasets import Dataset, DatasetDict

    path = data / "evaluation" / f"{name}.jsonl"
    rows = read_rows(path)
    if not rows:
        raise DataError(f"{path}: no rows")
    for number, row in enumerate(rows, 1):
        choices, answer = row.get("choices"), row.get("answer")
        texts = [row.get("topic"), row.get("question"), *(choices if isinstance(choices, list) else [None])]
        if not all(isinstance(text, str) and text for text in texts) or len(texts) != 2 + len(LETTERS):
            raise DataError(f"{path}, line {number}: 'topic' and 'question' must be texts, 'choices' four of them")
        if not isinstance(answer, int) or not 0 <= answer < len(LETTERS):
            raise DataError(f"{path}, line {number}: 'answer' must be the place of the right choice, 0 to 3")
        if row["topic"] != rows[0]["topic"]:
            raise DataError(f"{path}, line {number}: another topic than that of line 1")
    columns = [{key: row[key] for key in ("topic", "question", "choices", "answer")} for row in rows]
    return {
        "task": name,
        "custom_dataset": lambda **_: DatasetDict({"test": Dataset.from_list(columns)}),
        "test_split": "test",
        "output_type": "multiple_choice",
        **_prompt(prompt_format),
        "doc_to_target": "answer",
        "num_fewshot": 0,
        "metric_list": [{"metric": key, "aggregation": "mean", "higher_is_better": True} for key in CHOICE],
    }


def _prompt(prompt_format: str) -> dict[str, Any]:
    """A task's templates of prompt and choices. They are constants: what a row says is never part of a template."""
    if prompt_format == "texts":  # as lm_eval/tasks/arc/arc_easy.yaml
        return {"doc_to_text": "Question: {{question}}\nAnswer:", "doc_to_choice": "{{choices}}"}
    listed = "".join(f"{letter}. {{{{choices[{i}]}}}}\n" for i, letter in enumerate(LETTERS))
    return {  # as lm_eval/tasks/wmdp/_default_template_yaml
        "description": "The following are multiple choice questions (with answers) about {{topic}}.\n\n",
        "doc_to_text": f"{{{{question.strip()}}}}\n{listed}Answer:",
        "doc_to_choice": list(LETTERS),
    }


def _load_named(names: Sequence[str], options: LmEvalOptions, loaded: Loaded, cache: str) -> None:
    """Load tasks and groups by the names that the harness, or the files of ``include_path``, give them."""
    import datasets

    datasets.disable_progress_bars()
    manager = _manager(names, options)
    index = manager.task_index
    for name in names:
        if name not in index:
            near = get_close_matches(name, [*index, *options.prepared], n=3, cutoff=0.5)
            hint = f"; near it: {', '.join(near)}" if near else ""
            raise DataError(f"options.tasks: unknown task {name!r}{hint}")
        try:
            members = list(leaves(name, index))
        except KeyError as error:
            raise DataError(f"options.tasks: {name!r} has the unknown member {error}") from None
        for leaf in members:
            _localise(index[leaf], options, cache)
        try:
            found = manager.load([name])
        except (OSError, ImportError) as error:
            raise DataError(
                f"task {name!r}: {_first_line(error)}\nIts data set must be on this machine: name it in "
                "'datasets' of the benchmark's options, which the fetch step brings, or fill the cache in HF_HOME"
            ) from None
        except Exception as error:  # whose message may hold a question
            raise DataError(f"task {name!r}: cannot be loaded ({type(error).__name__})") from None
        loaded.tasks |= found["tasks"]
        for group in found.get("groups", {}).values():
            if group.name not in options.tasks:
                continue
            weighting = {
                metric: "documents" if part.weight_by_size else "tasks"
                for part in group.aggregate_metric_list or ()
                for metric in options.metrics
                if _aggregates(part, metric)
            }
            for task in group.get_all_tasks():
                loaded.groups.setdefault(task.task_name, {})[group.name] = weighting


def _aggregates(part: Any, metric: str) -> bool:
    """Whether an entry of a group's ``aggregate_metric_list`` is of this metric."""
    name, _, chosen = metric.partition(",")
    filters = [part.filter_list] if isinstance(part.filter_list, str) else part.filter_list
    return part.metric == name and (filters is None or (chosen or UNFILTERED) in filters)


def _manager(names: Sequence[str], options: LmEvalOptions) -> Any:
    """The index of tasks: of ``include_path`` where that holds all of them, for the harness's own takes ten seconds."""
    from lm_eval.tasks import TaskManager

    if options.include_path is None:
        return TaskManager()
    folder = FOLDER / options.include_path
    if not folder.is_dir():
        raise DataError(f"options.include_path: {folder} is not a folder")
    own = TaskManager(include_path=str(folder), include_defaults=False)
    if all(name in own.task_index for name in names):
        with contextlib.suppress(KeyError):
            for name in names:
                list(leaves(name, own.task_index))
            return own
    return TaskManager(include_path=str(folder))


def leaves(name: str, index: Mapping[str, Any]) -> Iterator[str]:
    """Names of the tasks that a task, tag or group is made of; ``KeyError`` for one that is not in the index."""
    entry = index[name]
    if not entry.cfg:  # a tag
        members: Any = sorted(entry.tags)
    else:
        members = entry.cfg.get("task") if "group" in entry.cfg else None
    if not isinstance(members, list):
        yield name
        return
    for member in members:
        if isinstance(member, str):
            yield from leaves(member, index)
        elif member.get("task") in index or member.get("group") in index:
            yield from leaves(member["task"] if member.get("task") in index else member["group"], index)


def _localise(entry: Any, options: LmEvalOptions, cache: str) -> None:
    """Let a task read its data from files of this machine: those beside its own file, or those that were fetched."""
    from lm_eval.tasks._yaml_loader import load_yaml

    if entry.yaml_path is None or not entry.cfg or not {"class", "custom_dataset"}.isdisjoint(entry.cfg):
        return  # it reads its data itself
    given = (entry.cfg.get("dataset_kwargs") or {}).get("data_files")
    repository = entry.cfg.get("dataset_path")
    if given is None and repository not in options.datasets:
        return
    config = load_yaml(entry.yaml_path)
    # A cache of this run alone: ranks do not wait for one another, and no copy of the questions is left.
    settings = {**(config.get("dataset_kwargs") or {}), "cache_dir": cache, "keep_in_memory": True}
    if given is not None:
        settings["data_files"] = _absolute(given, entry.yaml_path.parent, entry.name)
    else:
        config["dataset_path"] = str(snapshot_of(repository, options.datasets[repository], entry.name))
    config["dataset_kwargs"] = settings
    entry.cfg, entry.yaml_path = config, None


def _absolute(files: Any, folder: Path, task: str) -> Any:
    if isinstance(files, dict):
        return {key: _absolute(value, folder, task) for key, value in files.items()}
    if isinstance(files, list):
        return [_absolute(value, folder, task) for value in files]
    if "://" in files:
        return files
    if not (folder / files).is_file() and not any(sign in files for sign in "*?["):
        raise DataError(f"task {task!r}: its data file {folder / files} is missing")
    return str(folder / files)


def snapshot_of(repository: str, revision: str, task: str) -> Path:
    """The folder of a data set that was fetched from the hub. Raises ``DataError`` where it was not."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        return Path(snapshot_download(repository, repo_type="dataset", revision=revision, local_files_only=True))
    except (LocalEntryNotFoundError, ValueError):
        raise DataError(
            f"task {task!r}: data set {repository!r} at revision {revision!r} is not on this machine: "
            "run 'snakemake ... --forcerun fetch_datasets fetch' where the hub can be reached"
        ) from None


def _first_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:300]}"
