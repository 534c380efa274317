"""Checks of the further benchmarks that an experiment names as ``utility``."""

from __future__ import annotations

from pipeline.benchmarks import data_family
from pipeline.benchmarks.lm_eval.options import LmEvalOptions
from pipeline.config.benchmark_schema import Benchmark
from pipeline.config.checks.checker import Checker
from pipeline.config.experiment import Utility
from pipeline.config.located_yaml import Document, check, current, hint
from pipeline.config.named_files import CONFIGS
from pipeline.data.settings import FolderSource, HubSource
from pipeline.hub import local_files

FAMILY = "lm_eval"


def benchmarks(checker: Checker, benchmark: Benchmark) -> tuple[Utility, ...]:
    """The further benchmarks, each checked by itself, beside the others and beside the experiment's own."""
    found: list[Utility] = []
    for place, given in enumerate(checker.experiment.utility):
        key = ("utility", place)
        one, document = (
            checker.named(Benchmark, given, key) if isinstance(given, str) else (given, checker.document.at(*key))
        )
        if one is None or document is None:
            continue
        taken = [benchmark.name, *(other.benchmark.name for other in found)]
        if one.name in taken:
            checker.problem(key, f"the name {one.name!r} is taken; allowed: another than {', '.join(taken)}")
            continue
        checked = _checked(checker, one, document)
        if checked is not None:
            found.append(checked)
            _one_revision(checker, document, found)
    return tuple(found)


def _checked(checker: Checker, one: Benchmark, document: Document) -> Utility | None:
    problems = checker.problems
    if one.family != FAMILY:
        problems.append(document.problem(("family",), f"{one.family!r} is none of a utility{hint('', [FAMILY])}"))
        return None
    given = current(f"options of {FAMILY}", document.at("options"), problems)
    if "family" in given.data:
        problems.append(given.problem(("family",), "unknown key; the benchmark's own 'family' says it"))
        return None
    whole = Document({"family": FAMILY, **given.data}, {**given.marks, ("family",): given.mark(())})
    options = check(LmEvalOptions, whole, problems)
    if options is None:
        return None
    if options.forget:
        message = (
            f"{options.forget[0]!r} is to be forgotten, which the experiment's own benchmark measures; allowed: none"
        )
        problems.append(given.problem(("forget",), message))
    if options.include_path is not None and not (CONFIGS / options.include_path).is_dir():
        problems.append(given.problem(("include_path",), f"{str(options.include_path)!r} is not a folder"))
    utility = Utility(one, one.source, options)
    problems += [document.problem(("source",), message) for message in _source_problems(utility)]
    return utility


def _source_problems(one: Utility) -> list[str]:
    """What is wrong with where the questions of prepared tasks come from; other tasks bring their own."""
    source, data, prepared = one.source, data_family(FAMILY), one.options.prepared
    if source.kind not in data.kinds:
        return [f"the family {FAMILY!r} has no such source{hint(source.kind, list(data.kinds))}"]
    if one.split not in data.splits(source):
        return [f"the family {FAMILY!r} has no split {one.split!r} of it{hint(one.split, list(data.splits(source)))}"]
    if isinstance(source, HubSource) and prepared:
        return ["kind: 'hub' with prepared tasks; allowed for a utility: folder, or a kind that makes its questions"]
    if isinstance(source, FolderSource):
        return local_files.missing_data(source.path, data.files(one.split, prepared, training=False))
    unknown = [name for name in prepared if not isinstance(source, HubSource) and name not in data.splits(source)]
    return (
        [f"it makes no questions of the prepared task {unknown[0]!r}{hint(unknown[0], list(data.splits(source)))}"]
        if unknown
        else []
    )


def _one_revision(checker: Checker, document: Document, found: list[Utility]) -> None:
    """Whether a data set of the hub is wanted at one revision: the hub's cache is read by one alone."""
    options = checker.parts.options
    others = dict(options.hub_datasets) if options is not None else {}
    for one in found[:-1]:
        others |= one.options.hub_datasets
    for name, revision in found[-1].options.hub_datasets.items():
        if others.get(name, revision) != revision:
            message = f"{name!r} at {revision!r}; another benchmark of the experiment has it at {others[name]!r}"
            checker.problems.append(document.problem(("options", "datasets", name), message))
