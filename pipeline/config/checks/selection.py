"""Checks of an experiment's ``select``, and what it makes of the methods' validation."""

from __future__ import annotations

from megatron_ext.config.selection import WithinBudget
from pipeline.benchmarks import Options, family
from pipeline.config.benchmark_schema import Benchmark
from pipeline.config.checks.checker import Checker, Files
from pipeline.config.experiment import Run
from pipeline.config.located_yaml import Document, hint, merge
from pipeline.config.schema import OnTestMetric, Selection

VALIDATION = ("training", "validation")


def applied(files: Files, merged: Document, select: Selection | None, swept: bool) -> Document:
    """A method's merged file with the experiment's ``select`` in its validation, where it has one.

    Args:
        files: The experiment's document.
        merged: The method's file.
        select: What the experiment says.
        swept: Whether this is a point of a sweep, one of which is chosen.
    """
    if select is None:
        return merged
    wanted = files.document.at("select")
    if isinstance(select, OnTestMetric):  # it is not known while the run goes on
        wanted = Document("last", {(): wanted.mark(())})
    validation = merged.at(*VALIDATION).data
    if validation:
        if "select" in validation:
            message = "is given, and so is the experiment's 'select'; allowed: one of them"
            files.problems.append(merged.problem((*VALIDATION, "select"), message))
        return merge(merged, wanted.under("select").under("validation").under("training"))
    if wanted.data != "last":
        name, part = merged.data.get("name"), merged.data.get("trainable_layers") is not None
        if not part:
            files.problem(("select",), f"needs 'unlearning.validation', which {name!r} has not")
        elif swept:
            message = f"{name!r} builds a part of the model, which cannot be validated; allowed: last, test_metric"
            files.problem(("select",), message)
    return merged


def keep(checker: Checker) -> None:
    """Whether there is something to select where only that is kept."""
    experiment = checker.experiment
    if experiment.keep == "selected" and experiment.select in (None, "last"):
        message = "'selected' needs a 'select' that chooses a point; allowed: best-on-validation, budget, test_metric"
        checker.problem(("keep",), message)
    elif experiment.keep == "selected" and not experiment.sweep:
        checker.problem(("keep",), "'selected' without 'sweep' would keep all; allowed: all, none")


def evaluate_every(checker: Checker, runs: list[tuple[Document, Run]]) -> None:
    """Whether every run has the epochs that are to be evaluated, however it goes."""
    experiment = checker.experiment
    if experiment.evaluate_every is None:
        return
    every, place = experiment.evaluate_every.epochs, ("evaluate_every",)
    if experiment.requests is not None:
        checker.problem(place, "with 'requests'; allowed: one request to forget")
    for _, run in runs:
        training, why = run.method.training, ""
        if training.validation is not None and isinstance(training.validation.select, WithinBudget):
            why = "a run that breaks its budget ends early; allowed: select: last, best-on-validation, test_metric"
        elif training.max_steps is not None:
            why = f"{training.max_steps} steps at most, which may end a run before its epochs; allowed: max_steps: null"
        elif training.epochs % 1:
            why = f"{training.epochs:g} epochs of unlearning; allowed: a whole number"
        elif every >= training.epochs:
            why = f"{every} with {training.epochs:g} epochs of unlearning; allowed: fewer"
        if why:
            checker.problem((*place, "epochs"), f"{run.id!r}: {why}")


def test_metric(checker: Checker, benchmark: Benchmark, options: Options) -> None:
    """Whether the metric that chooses is one of the benchmark's that says which way is better."""
    select = checker.experiment.select
    if isinstance(select, OnTestMetric):
        known = [metric.key for metric in family(benchmark.family).metrics(options) if metric.better]
        if select.test_metric not in known:
            message = f"unknown metric {select.test_metric!r}{hint(select.test_metric, known)}"
            checker.problem(("select", "test_metric"), message)
