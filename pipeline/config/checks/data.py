"""Checks of the benchmark: its options, its data, its published numbers, its requests to forget, and its judge."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from pipeline.benchmarks import Options, data_family, families, family
from pipeline.benchmarks.base import Judged
from pipeline.config.benchmark_schema import Benchmark
from pipeline.config.checks.checker import Checker
from pipeline.config.experiment import data_files, requested
from pipeline.config.located_yaml import Document, Key, check, current, hint, merge
from pipeline.config.model_schema import Model
from pipeline.data.prepared import HasRequests, ReadsUserFiles
from pipeline.data.settings import BadRows, DataSource, FilesSource, FolderSource, HubSource
from pipeline.hub import local_files


def options(checker: Checker, benchmark: Benchmark, benchmark_file: Document) -> Options | None:
    """The family's settings: the benchmark's, with those of the experiment in place of them or added."""
    kind, data = f"options of {benchmark.family}", data_family(benchmark.family)
    files = (benchmark_file.at("options"), checker.document.at("evaluation", "options"))
    given = merge(*(current(kind, document, checker.problems) for document in files))
    if "family" in given.data:
        checker.problems.append(given.problem(("family",), "unknown key; the benchmark file's 'family' says it"))
        return None
    implied: dict[str, Any] = {}
    if isinstance(data, ReadsUserFiles):
        if "asked" in given.data:
            checker.problems.append(given.problem(("asked",), "unknown key; the benchmark's source says it"))
            return None
        files_source = _user_files(checker, benchmark, benchmark_file)
        if files_source is None:
            return None
        later = requested(checker.experiment, benchmark)[1:]
        implied = data.implied_options(files_source, checker.experiment.split, _has_retrain(checker), later)
    elif isinstance(data, HasRequests):
        implied = data.request_options(requested(checker.experiment, benchmark)[1:])
        for key in implied.keys() & given.data.keys():
            checker.problems.append(given.problem((key,), "unknown key; the experiment's 'requests' say it"))
            return None
    whole = Document(
        {"family": benchmark.family, **implied, **given.data},
        {**given.marks, **{(key,): given.mark(()) for key in ("family", *implied) if key not in given.data}},
    )
    return check(family(benchmark.family).options, whole, checker.problems)


def _has_retrain(checker: Checker) -> bool:
    """Whether there is a model that never saw the forget set, trained here or published."""
    model, experiment = checker.parts.model, checker.experiment
    published = model is not None and model.published("retrain", checker.retrain_split) is not None
    return published or experiment.training.retrain is not None


def _user_files(checker: Checker, benchmark: Benchmark, benchmark_file: Document) -> FilesSource | None:
    split, bad_rows = checker.experiment.split, checker.experiment.data.bad_rows
    return user_files(benchmark, benchmark_file, split, bad_rows, checker.problems)


def user_files(
    benchmark: Benchmark, document: Document, split: str, bad_rows: BadRows, problems: list[str]
) -> FilesSource | None:
    """A user's files, with paths from the folder of the YAML file that names each; all of a split are read.

    Args:
        benchmark: The benchmark that names them.
        document: Its file.
        split: The forget split.
        bad_rows: What becomes of rows that cannot be used.
        problems: Gets a message for everything that is wrong with the files.

    Returns:
        The source; ``None`` where something is wrong with it, or it is of another kind or has no such split.
    """
    given, data = benchmark.source, data_family(benchmark.family)
    if not isinstance(given, FilesSource) or not isinstance(data, ReadsUserFiles) or split not in given.splits:
        return None
    given = given.located(lambda name: document.mark(("source", "sets", name)).file.absolute().parent)
    found = data.problems(given, split, bad_rows)
    problems += [document.problem(("source", *key), message) for key, message in found]
    return None if found else given


def source(checker: Checker, benchmark: Benchmark, benchmark_file: Document) -> DataSource:
    """Where the benchmark's data come from: its own source, or the folder that was asked for in place of it."""
    split, known = checker.experiment.split, benchmark.forget_splits
    given, data = benchmark.source, data_family(benchmark.family)
    if given.kind not in data.kinds:
        message = f"the family {benchmark.family!r} has no such source{hint(given.kind, list(data.kinds))}"
        checker.problems.append(benchmark_file.problem(("source", "kind"), message))
        return given
    if split not in known:
        checker.problem(("split",), f"unknown split {split!r}{hint(split, known)}")
        return given
    where = benchmark_file.problem(("source", "path"), "").rstrip(": ")
    if checker.data_root is not None:
        if not isinstance(given, HubSource | FolderSource):
            what = "names its own files" if isinstance(given, FilesSource) else "makes its own data"
            checker.problem(("benchmark",), f"{benchmark.name!r} {what}: data_root has no meaning here")
            return given
        given, where = FolderSource(path=Path(checker.data_root).expanduser()), "data_root"
    if isinstance(given, FilesSource):
        return _user_files(checker, benchmark, benchmark_file) or given
    if split not in data.splits(given):
        message = f"the family {benchmark.family!r} has no such split{hint(split, list(data.splits(given)))}"
        checker.problems.append(benchmark_file.problem(("splits", split), message))
    elif isinstance(given, FolderSource):
        chosen = checker.parts.options
        sets = family(benchmark.family).sets(chosen) if chosen else ()
        missing = local_files.missing_data(given.path, data_files(checker.experiment, benchmark, sets, training=True))
        checker.problems += [f"{where}: {message}" for message in missing]
    elif not isinstance(given, HubSource):
        rows = data.rows(given, split)
        if rows is not None and rows != benchmark.splits[split]:
            message = f"{benchmark.splits[split]} rows are stated; the source makes {rows}"
            checker.problems.append(benchmark_file.problem(("splits", split), message))
    return given


def published_metrics(checker: Checker, benchmark: Benchmark, benchmark_file: Document, options: Options) -> None:
    """Whether published numbers are of metrics that the benchmark has, of methods that there are, and of one table."""
    metrics = _known_metrics(benchmark, benchmark_file, options)
    files = [file for folder in checker.folders for file in (folder / "methods").glob("*.yaml")]
    methods = ["target", "retrain", *sorted({file.stem for file in files})]
    methods += [run.id for _, run in checker.parts.runs or () if run.id not in methods]
    seen: set[tuple[str, str, str, str]] = set()
    for i, table in enumerate(benchmark.published):
        for method, values in table.values.items():
            key: Key = ("published", i, "values", method)
            if method not in methods and not any(method.startswith(f"{known}-") for known in methods[2:]):
                checker.problems.append(benchmark_file.problem(key, f"unknown method{hint(method, methods)}"))
            if (where := (table.source, table.model, table.split, method)) in seen:
                checker.problems.append(benchmark_file.problem(key, f"{table.source!r} has numbers of it twice"))
            seen.add(where)
            for name in values:
                if name not in metrics:
                    checker.problems.append(
                        benchmark_file.problem((*key, name), f"unknown metric{hint(name, metrics)}")
                    )


def _known_metrics(benchmark: Benchmark, benchmark_file: Document, options: Options) -> list[str]:
    """The metrics of the chosen options, and of the benchmark's own, some of which an experiment may switch off."""
    kind, known = family(benchmark.family), [options]
    own = current(f"options of {benchmark.family}", benchmark_file.at("options"), [])
    with suppress(ValidationError):  # the two may not go together; the chosen ones have been checked
        known.append(kind.options.model_validate({**options.model_dump(), **own.data}))
    return list(dict.fromkeys(metric.key for each in known for metric in kind.metrics(each)))


def published_of(checker: Checker, benchmark: Benchmark, model: Model) -> None:
    """Whether there are published numbers, on this split, of the other model that the report is to show beside ours."""
    split, of = checker.experiment.split, checker.experiment.report.published_of
    known = sorted({table.model for table in benchmark.published if table.split == split} - {model.name})
    if of is not None and of not in known:
        message = f"{benchmark.name!r} has no published numbers of {of!r} as another model on {split}{hint(of, known)}"
        checker.problem(("report", "published_of"), message)


def own_answers(checker: Checker, source: DataSource) -> None:
    """Whether target is there before data are prepared, where it answers general prompts."""
    sets = source.sets if isinstance(source, FilesSource) else {}
    named = [name for name, one in sets.items() if one.own_answers is not None]
    if named and checker.experiment.training.used:
        message = f"target cannot answer for the set {named[0]!r}: it must be a model of a folder or of the hub"
        checker.problem(("training", checker.experiment.training.used[0]), message)


def judge(checker: Checker, benchmark: Benchmark, options: Options) -> None:
    """Whether the family's answers with these options can be judged, where the experiment asks for it."""
    if checker.experiment.judge is None:
        return
    answers = family(options.family)
    if not isinstance(answers, Judged):
        allowed = ", ".join(name for name in families() if isinstance(family(name), Judged)) or "none"
        checker.problem(("judge",), f"answers of the family {options.family!r} cannot be judged; allowed: {allowed}")
    elif set(answers.judged(options)) != {"forget", "retain"}:
        message = f"with its options, {benchmark.name!r} generates no answers to be judged"
        checker.problem(("judge",), message)


def requests(checker: Checker, benchmark: Benchmark, source: DataSource) -> None:
    """Whether the benchmark has as many requests to forget as the experiment asks for."""
    wanted, data = checker.experiment.requests, data_family(benchmark.family)
    if wanted is None:
        return
    if not isinstance(data, HasRequests):
        checker.problem(("requests",), f"the family {benchmark.family!r} has one request to forget only")
        return
    split = checker.experiment.split
    known = data.requests(benchmark.source, split, wanted.order)
    if not known:
        return  # reported with the source
    if split != known[0]:
        checker.problem(("split",), f"{split!r}; the first of several requests is {known[0]!r}")
    if wanted.count > len(known):
        message = f"{wanted.count}; the family {benchmark.family!r} has {len(known)} from {known[0]!r} on"
        checker.problem(("requests", "count"), message)
        return
    others = known[1 : wanted.count]
    if isinstance(source, HubSource | FolderSource | FilesSource):
        return
    lacking = [request for request in others if data.rows(source, request) == 0]
    if lacking:
        message = f"{wanted.count}; the source of {benchmark.name!r} makes no {lacking[0]!r}"
        checker.problem(("requests", "count"), message)
