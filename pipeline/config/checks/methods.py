"""Checks of the methods, their batches, and the attacks on what they make."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from typing import Any

from pydantic import ValidationError

from megatron_ext.config import Layout
from megatron_ext.specs import SampledAnswers
from pipeline.benchmarks import data_family
from pipeline.config import methods, sweeps
from pipeline.config.attack_schema import Relearn
from pipeline.config.benchmark_schema import Benchmark
from pipeline.config.checks import selection
from pipeline.config.checks.checker import Checker, Files
from pipeline.config.experiment import Run, run_id
from pipeline.config.located_yaml import Document, Key, check, current, explain, hint, merge
from pipeline.config.method_schema import Batches, Method, MethodTraining, MethodUse, ModelTraining
from pipeline.config.named_files import is_path
from pipeline.config.schema import Experiment
from pipeline.data.errors import DataError
from pipeline.data.settings import DataSource, PromptTemplate
from pipeline.data.templates import TEMPLATES

Runs = list[tuple[Document, Run]]
LONGEST_FOLDER = 255  # characters of a folder's name, on most file systems
BESIDE = 45  # of them for seed, request, epoch, and the endings of folders that are being written
ONE_STEP = "with a run of one step: the first of a warm-up has the learning rate 0, and nothing would change"


def runs(files: Files, entries: list[Any], experiment: Experiment | None = None) -> Runs:
    """The methods of an experiment, each with its file, into which the experiment's settings are merged.

    Args:
        files: The experiment's document, and the files of methods.
        entries: The experiment's ``methods``.
        experiment: The experiment, where it is right by itself.

    Returns:
        All but those that are wrong by themselves, which are reported.
    """
    found: Runs = []
    ids: list[str] = []
    swept: Mapping[str, Any] = experiment.sweep if experiment else {}
    select = experiment.select if experiment else None
    defaults = _defaults(files)
    for i, entry in enumerate(entries):
        try:
            use = MethodUse.model_validate({"method": entry} if isinstance(entry, str) else entry)
        except ValidationError:
            continue  # reported with the experiment's own problems
        own = files.find("method", use.method, ("methods", i) if isinstance(entry, str) else ("methods", i, "method"))
        if own is None:
            ids.append(run_id(use.method, use.variant))
            continue
        overrides = current("method", files.document.at("methods", i, "overrides"), files.problems)
        merged = merge(merge(own, defaults.under("training")), overrides)
        name = run_id(str(own.data.get("name")), use.variant)
        merged = selection.applied(files, merged, select, name in swept)
        if name in swept:
            made = _swept(files, merged, overrides, use, name, swept[name])
        else:
            made = _run(files, merged, use, Run, use.variant)
        for run in made:
            if run[1].id in {other.id for _, other in found}:
                files.problem(("methods", i), f"{run[1].id!r} is there twice; give one of them another 'variant'")
            found.append(run)
        ids.append(name)
    for name in swept:
        if name not in ids:
            files.problem(("sweep", name), f"unknown method {name!r}{hint(name, ids)}")
    return found


def _defaults(files: Files) -> Document:
    """The experiment's ``unlearning``. It is checked here too, since every method may have its own over an entry."""
    defaults = files.document.at("unlearning")
    try:
        MethodTraining.model_validate(defaults.data)
    except ValidationError as error:
        files.problems += explain(error, MethodTraining, defaults, whole=False)
    return defaults


def _run(files: Files, merged: Document, use: MethodUse, make: Callable[..., Run], variant: str | None) -> Runs:
    """The run of a method's merged file; none where the file is wrong, which is reported."""
    method = check(Method, merged, files.problems)
    if method is None:
        return []
    if method.name != use.method and not is_path(use.method):
        files.problems.append(merged.problem(("name",), f"{method.name!r} must be the file's own name"))
    return [(merged, make(method, variant))]


def _swept(files: Files, merged: Document, overrides: Document, use: MethodUse, name: str, sweep: Any) -> Runs:
    """The runs of a method at all points of its sweep."""
    found: Runs = []
    made = sweeps.points(files.document.at("sweep", name), sweep)
    wrong = list(sweeps.problems(made))
    for place, message in wrong:
        files.problem(("sweep", name, *place), message)
    for point in [] if wrong else made:
        for key, place in point.places.items():
            path = tuple(key.split("."))
            if path in overrides.marks and not overrides.mark(path).line and point.overrides.mark(path).line:
                message = f"{key} is swept, and the command line sets it: set sweep.{name}.{key}"
                files.problem(("sweep", name, *place), message)
        there = merge(merged, current("method", point.overrides, files.problems))
        make = partial(Run, swept=name, point=point.values)
        variant = f"{use.variant}-{point.name}" if use.variant else point.name
        found += _run(files, there, use, make, variant)
    return found


def batches(checker: Checker, layout: Layout, runs: Runs) -> None:
    """Whether every batch divides over the layout, and its optimizer goes with it."""
    parts: list[tuple[Document, Key, Batches]] = [(merged, ("training",), run.method.training) for merged, run in runs]
    trained = checker.experiment.training.sections
    parts += [(checker.document, ("training", which), section) for which, section in trained.items()]
    parts += [(checker.document, key, attack) for key, attack in _relearned(checker)]
    for document, key, part in parts:
        total, micro = part.global_batch, part.micro_batch or 1
        if total % (layout.data * micro):
            message = f"{total} is not a multiple of {layout.data} (data-parallel ranks)"
            if part.micro_batch:
                message += f" x {micro} (micro_batch)"
            checker.problems.append(document.problem((*key, "global_batch"), message))
        if part.optimizer.name == "sgd" and layout.distributed_optimizer:
            message = "'sgd' does not work with the layout's distributed_optimizer; allowed: adamw"
            checker.problems.append(document.problem((*key, "optimizer", "name"), message))
    memory, names = checker.experiment.runtime.memory, dict.fromkeys(part.optimizer.name for _, _, part in parts)
    for name in names:
        if problem := memory.optimizer_problem(name, layout.distributed_optimizer):
            checker.problem(("runtime", "memory", "optimizer"), problem)


def warm_ups(checker: Checker, benchmark: Benchmark, source: DataSource, runs: Runs) -> None:
    """Whether a run of one step has no warm-up, the first step of which has the rate 0: it would change nothing."""
    trained: list[tuple[Key, ModelTraining | Relearn]] = [*_relearned(checker)]
    trained += [(("training", which), part) for which, part in checker.experiment.training.sections.items()]
    for key, part in trained:
        if part.steps == 1 and part.optimizer.schedule.warmup_steps:
            message = f"{part.optimizer.schedule.warmup_steps} {ONE_STEP}; allowed: 0, or more steps"
            checker.problem((*key, "optimizer", "schedule", "warmup_steps"), message)
    split, data = checker.experiment.split, data_family(benchmark.family)
    counted = checker.experiment.data.bad_rows == "error" and len(_topics(checker, benchmark, source)) == 1
    rows = None
    with suppress(DataError):  # which is said of the file itself
        rows = data.rows(source, split) if counted else None
    for merged, run in runs:
        training = run.method.training
        batch, accumulation = training.global_batch, training.accumulation
        if batch % (accumulation or 1) or (
            training.max_steps != 1 and (not rows or methods.steps(training, batch, rows) > 1)
        ):
            continue
        by_epochs = methods.warmup_steps(training, batch, rows or 1)
        for key, steps, given in (
            (("warmup_epochs",), by_epochs, training.warmup_epochs),
            (("optimizer", "schedule", "warmup_steps"), *2 * (training.optimizer.schedule.warmup_steps,)),
        ):
            if steps:
                message = f"{given:g} {ONE_STEP}; allowed: 0, or more steps (epochs, max_steps, global_batch)"
                checker.problems.append(merged.problem(("training", *key), message))


def names(checker: Checker, runs: Runs) -> None:
    """Whether each run's name leaves room for what a folder's name has beside it: seed, request, attack."""
    robustness = checker.experiment.robustness
    attacks = [attack.id for attack in robustness.relearned] + [attack.id for attack in robustness.quantised]
    allowed = LONGEST_FOLDER - BESIDE - max((len(attack) for attack in attacks), default=0)
    for _, run in runs:
        if len(run.id) > allowed:
            message = f"{run.id!r} has {len(run.id)} characters; allowed: {allowed}, with the variants of 'robustness'"
            checker.problem(("methods",), message)


def relearning(checker: Checker, benchmark: Benchmark, source: DataSource) -> None:
    """Whether every batch of an attack that trains has a row of each topic, or of each request."""
    topics, requests = len(_topics(checker, benchmark, source)), checker.experiment.requests
    if requests is not None and requests.order == "sustainability":
        topics, of = requests.count, "requests"
    else:
        of = "topics"
    for key, attack in _relearned(checker):
        if attack.global_batch < topics:
            message = f"{attack.global_batch} is less than the {topics} {of}, of which every batch has a share"
            checker.problem((*key, "global_batch"), message)


def fit(checker: Checker, runs: Runs) -> None:
    """Whether the parts of each method fit together, into the model, and to the topics."""
    parts = checker.parts
    runtime = methods.runtime(parts.layout or Layout(), checker.experiment.runtime)
    known = _topics(checker, parts.benchmark, parts.source) if parts.benchmark and parts.source else []
    for merged, run in runs:
        for key, message in methods.problems(run.method, runtime, parts.shape, known or ["forget"]):
            document = checker.document if methods.experiments_own(key) else merged
            checker.problems.append(document.problem(key, message))


def preferred_answers(checker: Checker, benchmark: Benchmark, source: DataSource, runs: Runs) -> None:
    """Whether the benchmark has the preferred answers that methods need."""
    known = data_family(benchmark.family).tokenised_sets(source)
    for merged, run in runs:
        answers = run.method.preferred_answers
        if isinstance(answers, SampledAnswers) and checker.parts.template and _labels_by_length(checker.parts.template):
            message = "answers cannot be sampled: with this template the answer's first token stands before the labels"
            checker.problems.append(merged.problem(("preferred_answers",), message))
        name = answers if answers is None or isinstance(answers, str) else "idk"  # where there are closed answers
        if name is not None and name not in known:
            message = f"the family {benchmark.family!r} has no set {name!r} of preferred answers for these data"
            checker.problems.append(merged.problem(("preferred_answers",), message))


def _labels_by_length(template: PromptTemplate) -> bool:
    return TEMPLATES[template].labels_by_length if isinstance(template, str) else template.labels_by_length


def _topics(checker: Checker, benchmark: Benchmark, source: DataSource) -> list[str]:
    """The topics that take turns in unlearning; none where the data have no such split, which is reported."""
    data, split = data_family(benchmark.family), checker.experiment.split
    return list(data.topics(split)) if split in data.splits(source) else []


def _relearned(checker: Checker) -> list[tuple[Key, Relearn]]:
    """The attacks that train, with their keys."""
    robustness, key = checker.experiment.robustness, ("robustness", "relearn")
    several = isinstance(robustness.relearn, list)
    return [((*key, i) if several else key, attack) for i, attack in enumerate(robustness.relearned)]
