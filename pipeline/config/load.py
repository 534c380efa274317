"""Read an experiment with the benchmark, model and method files that it names, and check it.

This is the one place where everything that is wrong is found. Neither torch nor a workflow engine is imported:
checking takes a fraction of a second.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from pipeline.config.benchmark_schema import Benchmark
from pipeline.config.checks import data, methods, models, selection, utility, weights
from pipeline.config.checks.checker import Checker, Files
from pipeline.config.composition import composed, file_of
from pipeline.config.experiment import Config
from pipeline.config.located_yaml import ConfigError, check, current
from pipeline.config.model_schema import Model
from pipeline.config.named_files import CONFIGS, placed
from pipeline.config.schema import Experiment
from pipeline.config.site import Site

# In the order in which a reader would make them.
CHECKS: tuple[Callable[..., None], ...] = (
    models.placed,
    data.published_metrics,
    data.published_of,
    selection.test_metric,
    selection.keep,
    selection.evaluate_every,
    models.trained_sets,
    models.sources,
    models.repeats,
    models.tokenizer,
    models.special_tokens,
    models.lengths,
    weights.folders,
    models.retrain,
    data.own_answers,
    data.judge,
    data.requests,
    models.new_tokens,
    methods.names,
    methods.batches,
    methods.warm_ups,
    methods.relearning,
    methods.fit,
    methods.preferred_answers,
)


def load(
    experiment: str | Path,
    data_root: str | Path | None = None,
    site: Site | None = None,
    settings: Sequence[str] = (),
) -> Config:
    """Read and check an experiment.

    Args:
        experiment: Its file, or the name of one of ``workflow_configs/experiments``.
        data_root: A local folder that replaces a hub source.
        site: The cluster on whose nodes jobs are to run, so that nothing is asked of this machine.
        settings: ``KEY=VALUE`` texts of the command line, which go over what the file says.

    Returns:
        The experiment and everything that it names.

    Raises:
        ConfigError: Lists everything that is wrong.
    """
    path = file_of(experiment)
    problems: list[str] = []
    document = placed("experiment", current("experiment", composed(experiment, settings, problems), problems))
    files = Files(document, list(dict.fromkeys([path.absolute().parent.parent, CONFIGS])), problems)
    parsed = check(Experiment, document, problems)
    if parsed is None:
        _check_named(files)
        raise ConfigError(problems)
    checker = Checker(files, parsed, data_root, site, tuple(settings))
    parts = checker.parts
    parts.benchmark, parts.benchmark_file = (
        checker.named(Benchmark, parsed.benchmark)
        if isinstance(parsed.benchmark, str)
        else (parsed.benchmark, document.at("benchmark"))
    )
    parts.model, parts.model_file = (
        checker.named(Model, parsed.model) if isinstance(parsed.model, str) else models.given(checker)
    )
    parts.options = checker.run(data.options)
    parts.source = checker.run(data.source)
    parts.utility = checker.run(utility.benchmarks) or ()
    parts.shape = checker.run(models.shape)
    parts.template = checker.run(models.template)
    parts.runs = methods.runs(checker, parsed.methods, parsed)
    parts.layout = checker.run(models.layout)
    for function in CHECKS:
        checker.run(function)
    return checker.config()


def _check_named(files: Files) -> None:
    """What can be said of an experiment that is wrong by itself: problems of the files that it names."""
    given: dict[str, Any] = files.document.data
    if isinstance(given.get("benchmark"), str):
        files.named(Benchmark, given["benchmark"])
    if isinstance(given.get("model"), str):
        files.named(Model, given["model"])
    if isinstance(given.get("methods"), list) and isinstance(given.get("unlearning", {}), dict):
        methods.runs(files, given["methods"])
