"""Checks of the models: where each comes from, whether the layout holds it, and what it is trained on."""

from __future__ import annotations

from megatron_ext.config import Layout
from pipeline.benchmarks import Options, data_family, family
from pipeline.config import methods, sizing
from pipeline.config.checks.checker import Checker
from pipeline.config.located_yaml import Document, hint
from pipeline.config.schema import Benchmark, Model, checkpoints, tokenizer_source
from pipeline.config.sizing import Shape
from pipeline.data.settings import DataSource
from pipeline.hub import local_files


def shape(checker: Checker, model: Model, model_file: Document) -> Shape | None:
    """The model's size: of its ``architecture``, else of a local checkpoint."""
    architecture, key = model.architecture, "architecture"
    if architecture is None:
        used = checkpoints(model, checker.experiment.training, checker.experiment.split)
        local = [checkpoint.folder for checkpoint in used.values() if checkpoint.folder]
        if not local:
            message = "architecture: is missing (no local checkpoint states it)"
            checker.problems.append(model_file.problem((), message))
            return None
        architecture, key = local_files.architecture(local[0]), "checkpoints"
        if architecture is None:
            return None  # the missing file is reported with its key
    try:
        return Shape.of(architecture)
    except (ValueError, TypeError) as error:
        checker.problems.append(model_file.problem((key,), str(error)))
        return None


def layout(checker: Checker, model: Model) -> Layout | None:
    """The experiment's layout, or the model's for that many ranks; checked against the model's size where that is
    known."""
    chosen = checker.experiment.layout
    if isinstance(chosen, int):
        known = {1: Layout()} | model.layouts
        if chosen not in known:
            allowed = ", ".join(map(str, sorted(known)))
            checker.problem(("layout",), f"model {model.name!r} has no layout for {chosen} ranks; allowed: {allowed}")
            return None
        if known[chosen].ranks != chosen:
            checker.problem(("layout",), f"the model's layout for {chosen} ranks has {known[chosen].ranks} ranks")
        chosen = known[chosen]
    size = checker.parts.shape
    for message in sizing.layout_problems(chosen, size) if size else ():
        checker.problem(("layout",), message)
    return chosen


def placed(checker: Checker, layout: Layout) -> None:
    """Whether the nodes of the site, or this machine, can hold the layout's ranks with their threads."""
    settings, trained = checker.experiment.runtime, checker.experiment.training.sections
    if checker.site is None:
        message = sizing.device_problem(layout, settings.device)
        if message:
            checker.problem(("layout",), message)
        return
    own = {which: section.threads for which, section in trained.items() if section.threads is not None}
    for which, threads in [(None, None), *own.items()]:
        try:
            sizing.spread(methods.runtime(layout, settings, threads), checker.site)
        except ValueError as error:
            key, _, message = str(error).partition(": ")
            section = ("runtime",) if which is None else ("training", which)
            checker.problem(("layout",) if key == "layout" else (*section, key), message)
            return


def trained_sets(checker: Checker, benchmark: Benchmark, source: DataSource) -> None:
    """Whether models are trained on sets that there are, and only target on what is to be forgotten."""
    data, split = data_family(benchmark.family), checker.experiment.split
    if benchmark.source.kind not in data.kinds or split not in benchmark.forget_splits:
        return  # reported with the source
    allowed, forgotten = data.training_sets(benchmark.source), data.forgotten(source, split)
    for which, section in checker.experiment.training.sections.items():
        for name in section.data:
            key = ("training", which, "data", name)
            if name not in allowed:
                checker.problem(key, f"unknown set{hint(name, allowed)}")
            elif which != "target" and name in forgotten:
                checker.problem(key, "holds the forget set, which this model never sees")


def sources(checker: Checker, model: Model) -> None:
    """Whether there is a target, and what models that are trained from scratch are made from."""
    training, split = checker.experiment.training, checker.experiment.split
    if training.target is None and model.published("target", split) is None:
        checker.problem(("training",), f"target: is missing, and model {model.name!r} has no published target")
    published = checkpoints(model, training, split)
    own_tokenizer = training.used and tokenizer_source(training, published) is None
    scratch = training.used and "base" not in published
    if (scratch and model.architecture is None) or (own_tokenizer and model.tokenizer is None):
        checker.problem(("model",), f"{model.name!r} has no 'architecture' or no 'tokenizer' to be made from")


def tokenizer(checker: Checker, model: Model) -> None:
    """Whether all models have one tokenizer."""
    training = checker.experiment.training
    published = checkpoints(model, training, checker.experiment.split)
    if not training.used or tokenizer_source(training, published) is not None:
        return
    for which in published:
        message = f"its tokenizer is trained on the data, but {which} is a published checkpoint with its own"
        checker.problem(("training", training.used[0]), message)


def lengths(checker: Checker, model: Model, model_file: Document, shape: Shape) -> None:
    """Whether sequences and vocabulary fit into the model."""
    length = checker.experiment.data.max_length
    if length > shape.context:
        checker.problem(("data", "max_length"), f"{length} tokens; the model's context is {shape.context}")
    if model.tokenizer and model.tokenizer.vocab_size > shape.vocabulary:
        message = f"{model.tokenizer.vocab_size} is more than the architecture's vocab_size, {shape.vocabulary}"
        checker.problems.append(model_file.problem(("tokenizer", "vocab_size"), message))


def folders(checker: Checker, model: Model, model_file: Document) -> None:
    """Whether local checkpoints are all there."""
    split = checker.experiment.split
    for which, checkpoint in checkpoints(model, checker.experiment.training, split).items():
        missing = local_files.missing_model_files(checkpoint.folder) if checkpoint.folder else None
        if missing:
            key = ("checkpoints", which, *((split,) if which == "retrain" else ()), "folder")
            checker.problems.append(model_file.problem(key, f"{str(checkpoint.folder)!r}: {missing}"))


def retrain(checker: Checker, model: Model, options: Options) -> None:
    """Whether there is a model that never saw the forget set, where a metric compares with one."""
    split, why = checker.experiment.split, options.needs_retrain
    if why and checker.experiment.training.retrain is None and model.published("retrain", split) is None:
        checker.problem(("training",), f"retrain: is missing, and model {model.name!r} has no published one: {why}")


def new_tokens(checker: Checker, shape: Shape, options: Options) -> None:
    """Whether generated answers fit into the model."""
    new = family(options.family).cost(options, 1).new_tokens
    if new >= shape.context:
        message = f"an answer may have {new} new tokens; the model's context is {shape.context}"
        checker.problem(("evaluation", "options"), message)
