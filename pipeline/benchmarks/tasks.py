"""Tasks of lm-evaluation-harness (EleutherAI, v0.4.13), WMDP (Li et al. 2024, arXiv 2403.03218) and MMLU among them.

The harness builds the requests and judges what a model answers; examples keep numbers alone, never a question or an
answer's text: some of these questions must not be spread.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import random
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, model_validator

from pipeline.benchmarks.base import Ask, Example, Metric, Options, Questions, read_rows, where
from pipeline.data.rows import DataError
from pipeline.metrics.multiple_choice import accuracy, accuracy_per_length
from pipeline.metrics.text import repeats_itself

if TYPE_CHECKING:
    from pipeline.data.tokenizer import Tokenizer

HARNESS = "lm-evaluation-harness v0.4.13"
UNFILTERED = "none"  # what the harness calls answers that no filter has changed
LOWER = {"perplexity", "word_perplexity", "byte_perplexity", "bits_per_byte", "brier_score", "ter"}
LETTERS = ("A", "B", "C", "D")
FOLDER = Path(__file__).parents[2] / "workflow_configs"  # where a relative include_path starts
MINIMUM = 20  # questions, of which a model's choices say something about it
CHOICE = {"acc": "", "acc_norm": "characters", "acc_bytes": "bytes"}  # metric -> lengths that it divides by
ROWS = 15000  # no less than the documents of MMLU, for estimates


class TasksOptions(Options):
    """``tasks``: names of tasks or of groups of tasks. A task of ``prepared`` has its questions in the prepared folder,
    and with ``layout: letters`` WMDP's prompt, which lists the choices and is answered by a letter; with ``texts`` a
    bare question, as ARC has it, that a choice's own text answers.

    ``metrics``: names of the harness, ``acc`` or ``exact_match,strict-match`` (with a filter); each task must have one
    at least. ``include_path``: folder of more task files; paths of data files in them start at the task's file.
    ``datasets``: hub data set -> revision, which the fetch step brings. ``forget`` and ``retain``: what the report says
    of tasks.
    """

    family: Literal["tasks"] = "tasks"
    tasks: list[str] = Field(min_length=1)
    prepared: list[str] = Field([], description="tasks of which the prepare step writes the questions")
    layout: Literal["letters", "texts"] = Field("letters", description="what is scored of a prepared task's choices")
    metrics: list[str] = Field(["acc"], min_length=1)
    forget: list[str] = Field([], description="tasks whose score is to fall")
    retain: list[str] = Field([], description="tasks whose score is to stay")
    include_path: Path | None = Field(None, strict=False)
    datasets: dict[str, str] = Field({}, description="hub data set -> revision")
    num_fewshot: int | None = Field(None, ge=0, description="where a task does not insist on none; default: the task's")
    limit: int | None = Field(None, ge=1, description="documents of each task: the first ones")
    seed: int = Field(1234, ge=0, description="draws the few shots of tasks that draw them")

    @model_validator(mode="after")
    def _names(self) -> TasksOptions:
        for key in ("tasks", "metrics"):
            names = getattr(self, key)
            if len(set(names)) < len(names):
                raise ValueError(f"{key}: {names} names one twice")
        for key in ("prepared", "forget", "retain"):
            unknown = [name for name in getattr(self, key) if name not in self.tasks]
            if unknown:
                raise ValueError(f"{key}: {unknown[0]!r} is not in 'tasks': {', '.join(self.tasks)}")
        both = sorted({*self.forget} & {*self.retain})
        if both:
            raise ValueError(f"forget: {both[0]!r} is in 'retain' too")
        return self

    @property
    def hub_datasets(self) -> dict[str, str]:
        return self.datasets


def key_of(task: str, metric: str) -> str:
    """A metric's key: ``exact_match,strict-match`` of task ``t`` is ``t_exact_match_strict-match``."""
    return f"{task}_{metric.replace(',', '_')}"


def _better(options: TasksOptions, task: str, metric: str) -> Literal["higher", "lower"]:
    low = metric.partition(",")[0] in LOWER
    return "lower" if low != (task in options.forget) else "higher"


class Tasks:
    """Runs tasks of the harness with the model behind its interface, and keeps each document's numbers."""

    options = TasksOptions

    def metrics(self, options: TasksOptions) -> tuple[Metric, ...]:
        rows = []
        for task in options.tasks:
            part = "forget" if task in options.forget else "retain" if task in options.retain else "other"
            for metric in options.metrics:
                name, _, chosen = metric.partition(",")
                rows.append(
                    Metric(
                        key_of(task, metric),
                        f"{task} {name}" + (f" ({chosen})" if chosen else ""),
                        _better(options, task, metric),
                        f"{name} of the task {task!r}" + (f", answers filtered by {chosen!r}" if chosen else ""),
                        HARNESS,
                        headline=part != "other" or len(options.tasks) <= 4,
                    )
                )
        return (
            *rows,
            Metric("cut_contexts", "Cut contexts", "lower", "documents of which the model read only the end", HARNESS),
            Metric("empty_generations", "Empty answers", "lower", "generations without a text", "this project"),
            Metric(
                "repetitive_generations",
                "Repetitive answers",
                "lower",
                "generations that repeat themselves: fewer than half of their word 4-grams are distinct",
                "this project",
            ),
        )

    def trade_offs(self, options: TasksOptions) -> tuple[tuple[str, str], ...]:
        metric = options.metrics[0]
        return tuple((key_of(keep, metric), key_of(drop, metric)) for keep in options.retain for drop in options.forget)

    def sets(self, options: TasksOptions) -> tuple[str, ...]:
        return tuple(options.prepared)

    def amount(self, options: TasksOptions, forget_rows: int) -> tuple[int, int, int]:
        """Four choices a document, and as many documents as MMLU has, or as ``limit`` allows; of prepared tasks as many
        as ten times the forget set. Generation is not counted: only the harness knows which tasks generate."""
        others = len(options.tasks) - len(options.prepared)
        rows = others * ROWS + len(options.prepared) * 10 * forget_rows
        return 4 * min(rows, len(options.tasks) * (options.limit or ROWS)), 0, 0

    def questions(self, data: Path, options: TasksOptions, tokenizer: Tokenizer, vocabulary: int) -> Questions:
        """Loads every task. Raises ``DataError`` that names the task for one that is not known, and for data that are
        not on this machine."""
        with _quiet(shown=True):
            loaded = _load(data, options)

        def ask(model: Ask) -> list[dict[str, Any]]:
            with _quiet(shown=model.rank == 0):
                return _ask(loaded, options, model)

        return ask

    def recompute(
        self, examples: Sequence[Example], options: TasksOptions, retain_examples: Sequence[Example] | None = None
    ) -> dict[str, float]:
        """Scores of tasks, and of groups as the harness makes them of their tasks' scores."""
        tasks: dict[str, list[Example]] = {}
        for example in examples:
            tasks.setdefault(example["set"], []).append(example)
        values: dict[str, float] = {}
        for name in options.tasks:
            found = {metric: _score(name, metric, tasks) for metric in options.metrics}
            if all(value is None for value in found.values()):
                raise DataError(f"task {name!r}: the examples have none of the metrics {', '.join(options.metrics)}")
            values |= {key_of(name, metric): value for metric, value in found.items() if value is not None}
        values["cut_contexts"] = sum(bool(example["cut"]) for example in examples)
        for key in ("empty", "repetitive"):
            values[f"{key}_generations"] = sum(example.get(key, 0) for example in examples)
        return values

    def collapse(self, examples: Sequence[Example], options: TasksOptions, metrics: Mapping[str, float]) -> list[str]:
        """Reasons: one choice to every question of a task that is to stay (of any task, where none is named), by its
        place among the choices; most generated answers are empty or repeat themselves."""
        reasons = []
        kept = options.retain or options.tasks
        tasks: dict[str, list[Example]] = {}
        for example in examples:
            names = {example["set"], *example["groups"]}
            if "log_probs" in example and not names.isdisjoint(kept):
                tasks.setdefault(example["set"], []).append(example)
        for name, some in tasks.items():
            chosen = {_chosen(example) for example in some}
            if len(some) >= MINIMUM and len(chosen) == 1 and len({str(e["gold"]) for e in some}) > 1:
                reasons.append(f"task {name!r}: choice {chosen.pop() + 1} in all of {len(some)} questions")
        generated = sum(example.get("generations", 0) for example in examples)
        bad = metrics["empty_generations"] + metrics["repetitive_generations"]
        if 2 * bad > generated:
            reasons.append(f"{bad:g} of {generated} generated answers are empty or repeat themselves")
        return reasons


def _score(name: str, metric: str, tasks: Mapping[str, Sequence[Example]]) -> float | None:
    """The value of a task or group; ``None`` where it does not have this metric."""
    if name in tasks:
        return _task_score(name, metric, tasks[name])
    values, weights = [], []
    for task, examples in tasks.items():
        weighting = examples[0]["groups"].get(name, {}).get(metric)
        value = None if weighting is None else _task_score(task, metric, examples)
        if value is not None:
            values.append(value)
            weights.append(len(examples) if weighting == "documents" else 1)
    if not values:
        return None
    return sum(value * weight for value, weight in zip(values, weights, strict=True)) / sum(weights)


def _task_score(name: str, metric: str, examples: Sequence[Example]) -> float | None:
    if metric in CHOICE and "log_probs" in examples[0]:
        return math.fsum(_choice(metric, example) for example in examples) / len(examples)
    items = [example["values"][metric] for example in examples if metric in example["values"]]
    if not items:
        return None
    aggregation = examples[0]["aggregations"][metric]
    if aggregation == "mean":
        return math.fsum(items) / len(items)
    from lm_eval.api import metrics  # noqa: F401  (fills the registry)
    from lm_eval.api.registry import get_aggregation

    return float(get_aggregation(aggregation)(items))


def _chosen(example: Example) -> int:
    return max(range(len(example["log_probs"])), key=example["log_probs"].__getitem__)


def _choice(metric: str, example: Example) -> float:
    try:
        if metric == "acc":
            return accuracy(example["log_probs"], example["gold"])
        return accuracy_per_length(example["log_probs"], example[CHOICE[metric]], example["gold"])
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{where(example)}: {metric}: {error!r}") from None


@dataclass
class _Loaded:
    """The harness's tasks by name; and of every group that is reported, by leaf task, how it is aggregated."""

    tasks: dict[str, Any]
    groups: dict[str, dict[str, dict[str, str]]]  # task -> group -> metric -> "documents" or "tasks"


def _load(data: Path, options: TasksOptions) -> _Loaded:
    from lm_eval.api.task import ConfigurableTask

    loaded = _Loaded({}, {})
    # Some tasks shuffle choices as they are read: in the same way on every rank, as the harness's own program does.
    random.seed(0)
    for name in options.prepared:
        loaded.tasks[name] = ConfigurableTask(config=_prepared(name, data, options.layout))
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


def _prepared(name: str, data: Path, layout: str) -> dict[str, Any]:
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
    columns = [{key: row[key] for key in ("question", "choices", "answer")} for row in rows]
    return {
        "task": name,
        "custom_dataset": lambda **_: DatasetDict({"test": Dataset.from_list(columns)}),
        "test_split": "test",
        "output_type": "multiple_choice",
        **_layout(layout, rows[0]["topic"]),
        "doc_to_target": "answer",
        "num_fewshot": 0,
        "metric_list": [{"metric": key, "aggregation": "mean", "higher_is_better": True} for key in CHOICE],
    }


def _layout(name: str, topic: str) -> dict[str, Any]:
    if name == "texts":  # as lm_eval/tasks/arc/arc_easy.yaml
        return {"doc_to_text": "Question: {{question}}\nAnswer:", "doc_to_choice": "{{choices}}"}
    listed = "".join(f"{letter}. {{{{choices[{i}]}}}}\n" for i, letter in enumerate(LETTERS))
    return {  # as lm_eval/tasks/wmdp/_default_template_yaml
        "description": f"The following are multiple choice questions (with answers) about {topic}.\n\n",
        "doc_to_text": f"{{{{question.strip()}}}}\n{listed}Answer:",
        "doc_to_choice": list(LETTERS),
    }


def _load_named(names: Sequence[str], options: TasksOptions, loaded: _Loaded, cache: str) -> None:
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
            leaves = list(_leaves(name, index))
        except KeyError as error:
            raise DataError(f"options.tasks: {name!r} has the unknown member {error}") from None
        for leaf in leaves:
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


def _manager(names: Sequence[str], options: TasksOptions) -> Any:
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
                list(_leaves(name, own.task_index))
            return own
    return TaskManager(include_path=str(folder))


def _leaves(name: str, index: Mapping[str, Any]) -> Iterator[str]:
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
            yield from _leaves(member, index)
        elif member.get("task") in index or member.get("group") in index:
            yield from _leaves(member["task"] if member.get("task") in index else member["group"], index)


def _localise(entry: Any, options: TasksOptions, cache: str) -> None:
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


def _metric_name(metric: str, chosen: str) -> str:
    """``acc`` for answers as they are, ``acc,filter`` for filtered ones."""
    return metric if chosen == UNFILTERED else f"{metric},{chosen}"


def _first_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:300]}"


def _ask(loaded: _Loaded, options: TasksOptions, model: Ask) -> list[dict[str, Any]]:
    """Examples of all documents, by task."""
    import numpy as np
    from lm_eval.evaluator import evaluate

    from pipeline.lm_eval_model import AskLM

    random.seed(0)
    np.random.seed(options.seed)
    lm = AskLM(model)
    results = evaluate(lm, {"tasks": loaded.tasks, "groups": {}}, limit=options.limit, bootstrap_iters=0)
    examples = []
    for name, task in loaded.tasks.items():
        documents: dict[int, list[dict[str, Any]]] = {}  # a sample of each filter
        for sample in results["samples"][name]:
            documents.setdefault(sample["doc_id"], []).append(sample)
        aggregations = _aggregations(task)
        for index, samples in sorted(documents.items()):
            example = {
                "set": name,
                "index": index,
                "doc_hash": samples[0]["doc_hash"],
                "cut": (name, index) in lm.cut,
                "groups": loaded.groups.get(name, {}),
                **_numbers(task, samples, options, aggregations),
            }
            examples.append(example)
    return examples


def _aggregations(task: Any) -> dict[str, str]:
    """By metric, the harness's name of the function that makes one number of all documents'."""
    from lm_eval.api.registry import AGGREGATION_REGISTRY

    names = {id(function): name for name, function in AGGREGATION_REGISTRY.items()}
    return {metric: names.get(id(function), "") for metric, function in task.aggregation().items()}


def _numbers(
    task: Any, samples: Sequence[Mapping[str, Any]], options: TasksOptions, aggregations: Mapping[str, str]
) -> dict[str, Any]:
    """What an example holds of a document: log-probabilities of choices, or the values of metrics."""
    first, place = samples[0], f"task {task.task_name!r}, document {samples[0]['doc_id']}"
    found: dict[str, Any] = {"values": {}, "aggregations": {}}
    if task.OUTPUT_TYPE == "multiple_choice" and not callable(task.config.process_results):
        found |= _choices(task, first, place)
    for sample in samples:
        for metric in sample["metrics"]:
            key = _metric_name(metric, sample["filter"])
            if key not in options.metrics or (key in CHOICE and "log_probs" in found):
                continue
            if not aggregations.get(metric):
                raise DataError(f"task {task.task_name!r}: {metric!r} is aggregated by a function of its own")
            found["values"][key] = _plain(sample[metric], f"{place}: {metric!r}")
            found["aggregations"][key] = aggregations[metric]
    if task.OUTPUT_TYPE == "generate_until":
        texts = [text for response in first["resps"] for text in response]
        found["generations"] = len(texts)
        found["empty"] = sum(not text.strip() for text in texts)
        found["repetitive"] = sum(map(repeats_itself, texts))
    return found


def _choices(task: Any, sample: Mapping[str, Any], place: str) -> dict[str, Any]:
    texts, gold = task.doc_to_choice(sample["doc"]), sample["target"]
    if task.multiple_input:
        gold = task.doc_to_text(sample["doc"])
    places = [texts.index(one) if isinstance(one, str) and one in texts else one for one in _listed(gold)]
    scores = [responses[0] for responses in sample["resps"]][: len(texts)]
    if not all(isinstance(one, int) and 0 <= one < len(texts) for one in places):
        raise DataError(f"{place}: the right answer is none of its {len(texts)} choices")
    if not all(math.isfinite(log_prob) for log_prob, _ in scores):
        raise DataError(f"{place}: log-probabilities {[log_prob for log_prob, _ in scores]}")
    return {
        "log_probs": [float(log_prob) for log_prob, _ in scores],
        "greedy": [bool(greedy) for _, greedy in scores],
        "characters": [len(text) for text in texts],
        "bytes": [len(text.encode("utf-8")) for text in texts],
        "gold": [int(one) for one in places] if isinstance(gold, list) else int(places[0]),
        **({"right": bool(sample["acc"])} if "acc" in sample else {}),
    }


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _plain(value: Any, place: str) -> Any:
    """A number, or a list of numbers, as JSON has them; raises ``DataError`` for a text, which examples do not keep."""
    if isinstance(value, tuple | list) or type(value).__name__ == "ndarray":
        return [_plain(one, place) for one in value]
    if isinstance(value, str) or not hasattr(value, "__float__"):
        raise DataError(f"{place} is made of texts, which are not kept; name other metrics in 'metrics'")
    number = float(value)
    if not math.isfinite(number):
        raise DataError(f"{place} is {number}")
    return int(value) if isinstance(value, bool | int) else number


@contextlib.contextmanager
def _quiet(shown: bool) -> Iterator[None]:
    """The harness and ``datasets`` say nothing, for a warning of a wrong answer has the whole question; the progress
    bars go to nowhere unless ``shown``."""
    loggers = [logging.getLogger(name) for name in ("lm_eval", "datasets")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        with contextlib.ExitStack() as stack:
            if not shown:
                nowhere = stack.enter_context(Path(os.devnull).open("w"))
                stack.enter_context(contextlib.redirect_stderr(nowhere))
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


FAMILY = Tasks()
