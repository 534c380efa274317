"""What the ``evaluate`` command is asked for, checked as far as it can be before anything is fetched."""

from __future__ import annotations

import argparse
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_ext.config import Layout
from pipeline.benchmarks import Family, Options, data_family, family
from pipeline.benchmarks.privacy import PrivacyOptions
from pipeline.commands.options import family_options, parallel_layout
from pipeline.config.benchmark_schema import Benchmark
from pipeline.config.checks.data import user_files
from pipeline.config.load import CONFIGS
from pipeline.config.located_yaml import ConfigError, Document, check, hint, read
from pipeline.config.model_schema import Checkpoint
from pipeline.config.named_files import placed
from pipeline.data.errors import DataError
from pipeline.data.prepared import ReadsUserFiles
from pipeline.data.settings import DataSource, FilesSource, FolderSource, HubSource
from pipeline.exchange.reading import ENDS, family_of_log, has_losses, min_k_auc, read_log
from pipeline.hub import adapter, local_files, model_folder
from pipeline.specs import RETRAIN

LOGS = tuple(name for name in ENDS if name.endswith("_EVAL.json"))  # open-unlearning's, with examples
HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")


@dataclass(frozen=True)
class Request:
    """A model, a benchmark, and how the one is put to the other.

    Attributes:
        name: The model as it was given.
        checkpoint: A folder, or a repository of the hub.
        benchmark: The benchmark's file.
        split: The forget split.
        source: Where the benchmark's files are.
        options: Settings of the benchmark's family.
        explicit: Keys of the settings that the command line gives.
        layout: Ranks.
        retain: The folder of retrain's evaluation, where there is one to compare with.
    """

    name: str
    checkpoint: Checkpoint
    benchmark: Benchmark
    split: str
    source: DataSource
    options: Options
    explicit: frozenset[str]
    layout: Layout
    retain: Path | None

    @property
    def folder(self) -> Path | None:
        """The model's own folder; None where it is fetched, or merged with adapters, first."""
        return None if self.checkpoint.adapter else self.checkpoint.folder

    @property
    def family(self) -> Family:
        """The benchmark's family."""
        return family(self.options.family)


def read_request(given: argparse.Namespace) -> Request:
    """The request that a command line makes.

    Raises:
        ConfigError: Lists everything that is wrong with it.
    """
    problems: list[str] = []
    layout = parallel_layout(given.layout, problems)
    for name in ("threads", "token_budget"):
        if getattr(given, name) < 1:
            problems.append(f"--{name.replace('_', '-')}: {getattr(given, name)}; at least 1 is needed")
    checkpoint = _checkpoint(given, problems)
    retain = _retain(given, problems)
    benchmark, document = _benchmark(given.benchmark, problems)
    if benchmark is None or document is None:
        raise ConfigError(problems)
    split = _split(given.split, benchmark, problems)
    implied, files = _user_files(given, benchmark, document, split, problems)
    options = family_options(document.at("options"), given.option, benchmark.family, problems, implied)
    explicit = frozenset(text.partition("=")[0].strip() for text in given.option)
    if options is not None and retain is not None and retain.is_file():
        options = _with_log(options, retain, explicit, problems)
    if options is not None and retain is None and not given.as_retrain:
        options = _without_retrain(options, explicit, problems)
    source = files or _source(given, benchmark, problems)
    if problems or layout is None or options is None or split is None or checkpoint is None:
        raise ConfigError(problems)
    name = str(checkpoint.folder or checkpoint.hub)
    name += f" with {checkpoint.adapter}" if checkpoint.adapter else ""
    if retain is not None and retain.is_file():
        retain = _read_log(retain, given.out.absolute() / "retain-evaluation", benchmark, split)
    request = Request(name, checkpoint, benchmark, split, source, options, explicit, layout, retain)
    _require_files(request)
    return request


def _checkpoint(given: argparse.Namespace, problems: list[str]) -> Checkpoint | None:
    folder = Path(given.model).expanduser()
    beside = given.adapter.expanduser().absolute() if given.adapter else None
    fault = adapter.fault(beside, folder if folder.exists() else None) if beside else None
    if fault:
        problems.append(f"--adapter: {str(given.adapter)!r}: {fault}")
    if folder.exists():
        if given.revision is not None:
            problems.append(f"--revision: {given.model} is a folder; only a model on the hub has revisions")
        fault = model_folder.fault(folder)
        if fault:
            problems.append(f"--model: {str(folder)!r}: {fault}")
        return Checkpoint(folder=folder.absolute(), adapter=beside)
    if not HUB_NAME.fullmatch(given.model):
        problems.append(f"--model: there is no folder {given.model!r}, and it is not a name on the hub (owner/name)")
        return None
    return Checkpoint(hub=given.model, revision=given.revision, adapter=beside)


def _retain(given: argparse.Namespace, problems: list[str]) -> Path | None:
    """The folder of retrain's evaluation."""
    path = given.retain_evaluation
    if path is None:
        return None
    if given.as_retrain:
        problems.append("--retain-evaluation: a model that is retrain itself is compared with nothing else")
    path = path.expanduser().absolute()
    if path.name in LOGS and path.is_file():
        return path
    folder = path if path.is_dir() else path.parent
    if path.is_file() and path.name not in ("evaluation.json", "examples.jsonl"):
        allowed = f"evaluation.json, the folder it is in, or {', '.join(LOGS)}"
        problems.append(f"--retain-evaluation: {path.name!r} is not allowed: {allowed}")
    elif not (folder / "evaluation.json").is_file():
        problems.append(f"--retain-evaluation: {folder / 'evaluation.json'} is missing")
    return folder


def _with_log(options: Options, log: Path, explicit: frozenset[str], problems: list[str]) -> Options:
    """Options that compare with open-unlearning's log of retrain, which holds an AUC and no scores of tokens."""
    if not isinstance(options, PrivacyOptions):
        return options
    try:
        auc, losses = min_k_auc(log), has_losses(log)
    except DataError as error:
        problems.append(f"--retain-evaluation: {error}")
        return options
    given: dict[str, Any] = {}
    lacking: dict[str, Any] = {}
    if options.privleak and options.privleak_retrain_auc is None:
        given, lacking = ({"privleak_retrain_auc": auc}, {}) if auc is not None else ({}, {"privleak": False})
    if "reference" in options.membership and not losses:
        lacking["membership"] = [name for name in options.membership if name != "reference"]
    asked = sorted(explicit.intersection(lacking))
    if asked:
        problems.append(f"--option {', '.join(asked)}: {log} has not what it needs of retrain, mia_min_k or mia_loss")
    elif lacking:
        now = ", ".join(f"{key} = {json.dumps(value)}" for key, value in lacking.items())
        print(f"note: {log} has no mia_min_k, or no mia_loss of answers, so {now}", flush=True)
    return options.model_copy(update={**given, **lacking})


def _read_log(log: Path, output: Path, benchmark: Benchmark, split: str) -> Path:
    """The folder of retrain's evaluation that is made of one of open-unlearning's logs."""
    try:
        if family_of_log(log) != benchmark.family:
            raise DataError(f"{log}: of {family_of_log(log)!r}, but the benchmark is {benchmark.family!r}")
        read_log(log, output, model=RETRAIN, benchmark=benchmark.name, split=split)
    except DataError as error:
        raise ConfigError([f"--retain-evaluation: {error}"]) from None
    return output


def _benchmark(name: str, problems: list[str]) -> tuple[Benchmark | None, Document | None]:
    folder = CONFIGS / "benchmarks"
    path = Path(name).expanduser() if name.endswith((".yaml", ".yml")) else folder / f"{name}.yaml"
    if not path.is_file():
        known = sorted(file.stem for file in folder.glob("*.yaml"))
        problems.append(f"--benchmark: no file and no known name: {name!r}{hint(name, known)}")
        return None, None
    try:
        document = placed("benchmark", read(path))
    except ConfigError as error:
        problems += error.problems
        return None, None
    return check(Benchmark, document, problems), document


def _split(name: str | None, benchmark: Benchmark, problems: list[str]) -> str | None:
    known = benchmark.forget_splits
    if name is None and len(known) == 1:
        return known[0]
    if name is None:
        problems.append(f"--split: is missing; allowed: {', '.join(known)}")
        return None
    if name not in known:
        problems.append(f"--split: unknown split {name!r}{hint(name, known)}")
        return None
    allowed = data_family(benchmark.family).splits(benchmark.source)
    if name not in allowed:
        problems.append(f"--split: the family {benchmark.family!r} has no such split{hint(name, list(allowed))}")
    return name


def _user_files(
    given: argparse.Namespace, benchmark: Benchmark, document: Document, split: str | None, problems: list[str]
) -> tuple[dict[str, Any], FilesSource | None]:
    """Options that follow from a user's own files, and these files; nothing where the benchmark has none."""
    data = data_family(benchmark.family)
    if split is None or not isinstance(data, ReadsUserFiles) or given.data_root is not None:
        return {}, None
    files = user_files(benchmark, document, split, given.bad_rows, problems)
    if files is None:
        raise ConfigError(problems or [document.problem(("source",), f"has no split {split!r} of files")])
    asks_target = [name for name in files.splits[split].retain if files.sets[name].own_answers is not None]
    if asks_target:
        message = "target answers it in an experiment's own step, which 'unlearn run' starts: give a set of rows here"
        raise ConfigError([document.problem(("source", "sets", asks_target[0]), message)])
    retrain = given.retain_evaluation is not None or given.as_retrain
    return data.implied_options(files, split, retrain), files


def _without_retrain(options: Options, explicit: frozenset[str], problems: list[str]) -> Options:
    """Options that need no retrain: without what the benchmark file asks for, but never without what the user does."""
    why = options.needs_retrain
    if why is None:
        return options
    reduced = options.without_retrain()
    changed = [key for key in type(options).model_fields if getattr(options, key) != getattr(reduced, key)]
    asked = sorted(explicit.intersection(changed))
    if reduced.needs_retrain or asked:
        option = f"--option {', '.join(asked)}" if asked else "--retain-evaluation"
        problems.append(f"{option}: no evaluation of retrain is given: {why}")
        return options
    now = ", ".join(f"{key} = {json.dumps(reduced.model_dump(mode='json')[key])}" for key in changed)
    print(f"note: without --retain-evaluation nothing is compared with retrain, so {now}: {why}", flush=True)
    return reduced


def _source(given: argparse.Namespace, benchmark: Benchmark, problems: list[str]) -> DataSource:
    source = benchmark.source
    kinds = data_family(benchmark.family).kinds
    if source.kind not in kinds:
        what = f"the family {benchmark.family!r} has no source {source.kind!r}{hint(source.kind, list(kinds))}"
        problems.append(f"--benchmark: {what}")
    if given.data_root is None:
        return source
    if not isinstance(source, HubSource | FolderSource):
        problems.append(f"--data-root: {benchmark.name!r} makes its own data: a folder has no meaning here")
        return source
    return FolderSource(path=given.data_root.expanduser().absolute())


def _require_files(request: Request) -> None:
    """Raise ``ConfigError`` for files of the benchmark that the user's folder lacks."""
    if isinstance(request.source, FolderSource):
        sets = request.family.sets(request.options)
        files = data_family(request.benchmark.family).files(request.split, sets, training=False)
        missing = local_files.missing_data(request.source.path, files)
        if missing:
            raise ConfigError([f"--data-root: {message}" for message in missing])
