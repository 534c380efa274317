"""Checks of the benchmark: its options, its data, its published numbers, its requests to forget, and its judge."""

from __future__ import annotations

from pathlib import Path

from pipeline.benchmarks import Options, data_family, families, family
from pipeline.benchmarks.base import Judged
from pipeline.config.checks.checker import Checker
from pipeline.config.located_yaml import Document, check, current, hint, merge
from pipeline.config.schema import Benchmark
from pipeline.data.prepared import HasRequests
from pipeline.data.settings import DataSource, FolderSource, HubSource
from pipeline.hub import local_files


def options(checker: Checker, benchmark: Benchmark, benchmark_file: Document) -> Options | None:
    """The family's settings: the benchmark's, with those of the experiment in place of them or added."""
    kind = f"options of {benchmark.family}"
    files = (benchmark_file.at("options"), checker.document.at("evaluation", "options"))
    given = merge(*(current(kind, document, checker.problems) for document in files))
    if "family" in given.data:
        checker.problems.append(given.problem(("family",), "unknown key; the benchmark file's 'family' says it"))
        return None
    whole = Document({"family": benchmark.family, **given.data}, {**given.marks, ("family",): given.mark(())})
    return check(family(benchmark.family).options, whole, checker.problems)


def source(checker: Checker, benchmark: Benchmark, benchmark_file: Document) -> DataSource:
    """Where the benchmark's data come from: its own source, or the folder that was asked for in place of it."""
    split, given, data = checker.experiment.split, benchmark.source, data_family(benchmark.family)
    if given.kind not in data.kinds:
        message = f"the family {benchmark.family!r} has no such source{hint(given.kind, list(data.kinds))}"
        checker.problems.append(benchmark_file.problem(("source", "kind"), message))
        return given
    if split not in benchmark.splits:
        checker.problem(("split",), f"unknown split {split!r}{hint(split, list(benchmark.splits))}")
        return given
    where = benchmark_file.problem(("source", "path"), "").rstrip(": ")
    if checker.data_root is not None:
        if not isinstance(given, HubSource | FolderSource):
            checker.problem(("benchmark",), f"{benchmark.name!r} makes its own data: data_root has no meaning here")
            return given
        given, where = FolderSource(path=Path(checker.data_root).expanduser()), "data_root"
    if split not in data.splits:
        message = f"the family {benchmark.family!r} has no such split{hint(split, list(data.splits))}"
        checker.problems.append(benchmark_file.problem(("splits", split), message))
    elif isinstance(given, FolderSource):
        chosen = checker.parts.options
        sets = family(benchmark.family).sets(chosen) if chosen else ()
        missing = local_files.missing_data(given.path, data.files(split, sets, training=True))
        checker.problems += [f"{where}: {message}" for message in missing]
    elif not isinstance(given, HubSource):
        rows = data.rows(given, split)
        if rows is not None and rows != benchmark.splits[split]:
            message = f"{benchmark.splits[split]} rows are stated; the source makes {rows}"
            checker.problems.append(benchmark_file.problem(("splits", split), message))
    return given


def published_metrics(checker: Checker, benchmark: Benchmark, benchmark_file: Document, options: Options) -> None:
    """Whether published numbers are of metrics that the benchmark has."""
    metrics = [metric.key for metric in family(benchmark.family).metrics(options)]
    for i, table in enumerate(benchmark.published):
        for method, values in table.values.items():
            for name in values:
                if name not in metrics:
                    key = ("published", i, "values", method, name)
                    checker.problems.append(benchmark_file.problem(key, f"unknown metric{hint(name, metrics)}"))


def judge(checker: Checker, options: Options) -> None:
    """Whether the family's answers with these options can be judged, where the experiment asks for it."""
    if checker.experiment.judge is None:
        return
    benchmark = family(options.family)
    if not isinstance(benchmark, Judged):
        allowed = ", ".join(name for name in families() if isinstance(family(name), Judged)) or "none"
        checker.problem(("judge",), f"answers of the family {options.family!r} cannot be judged; allowed: {allowed}")
    elif set(benchmark.judged(options)) != {"forget", "retain"}:
        message = f"with its options, {checker.experiment.benchmark!r} generates no answers to be judged"
        checker.problem(("judge",), message)


def requests(checker: Checker, benchmark: Benchmark, source: DataSource) -> None:
    """Whether the benchmark has as many requests to forget as the experiment asks for."""
    wanted, data = checker.experiment.requests, data_family(benchmark.family)
    if wanted is None:
        return
    if not isinstance(data, HasRequests):
        checker.problem(("requests",), f"the family {benchmark.family!r} has one request to forget only")
        return
    known = data.requests(wanted.order)
    if wanted.count > len(known):
        checker.problem(("requests", "count"), f"{wanted.count}; the family {benchmark.family!r} has {len(known)}")
        return
    if checker.experiment.split != data.splits[0]:
        message = f"{checker.experiment.split!r}; the first of several requests is {data.splits[0]!r}"
        checker.problem(("split",), message)
    others = known[1 : wanted.count]
    if isinstance(source, FolderSource):
        missing = local_files.missing_data(source.path, data.request_files(others))
        checker.problems += [f"requests: {message}" for message in missing]
    if isinstance(source, HubSource | FolderSource):
        return
    lacking = [request for request in others if data.rows(source, request) == 0]
    if lacking:
        message = f"{wanted.count}; the source of {benchmark.name!r} makes no {lacking[0]!r}"
        checker.problem(("requests", "count"), message)
