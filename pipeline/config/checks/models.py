"""Checks of the models: where each comes from, whether the layout holds it, and what it is trained on."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from typing import Any

from megatron_ext.config import Layout
from megatron_ext.schema import SEEDS
from pipeline.benchmarks import Options, data_family, family
from pipeline.config import auto_layout, methods, sizing
from pipeline.config.benchmark_schema import Benchmark
from pipeline.config.checks import weights
from pipeline.config.checks.checker import Checker
from pipeline.config.located_yaml import Document, Key, hint
from pipeline.config.method_schema import Method
from pipeline.config.model_schema import GivenModel, Model, TemplateBlock
from pipeline.config.schema import AutoLayout, Experiment, checkpoints, tokenizer_source
from pipeline.config.sizing import Shape
from pipeline.data.chat_templates import chat_template, rendered
from pipeline.data.errors import DataError
from pipeline.data.settings import DataSource, PromptTemplate
from pipeline.data.templates import Template
from pipeline.hub import local_files, model_folder

TRIED = 64  # numbers of GPUs that a message names, at most


def given(checker: Checker) -> tuple[Model | None, Document | None]:
    """The model that an experiment gives by a name or folder alone, and what stands for its file."""
    given = checker.experiment.model
    assert isinstance(given, GivenModel)  # asked for only then
    document = checker.document.at("model")
    folder = weights.described(checker, given.checkpoint, document, weights.key_of(checker, "", given.checkpoint))
    if folder is None:
        return None, document
    trained = checker.experiment.training.target is not None
    return given.whole("tokenizer" if chat_template(folder) else "plain", trained), document


def template(checker: Checker, model: Model, model_file: Document) -> PromptTemplate | None:
    """How a question and its answer become one text; a tokenizer's own template is rendered once, here."""
    if isinstance(model.template, TemplateBlock):
        return model.template.parts
    if model.template != "tokenizer":
        return model.template
    training = checker.experiment.training
    used = checkpoints(model, training, checker.retrain_split)
    which = tokenizer_source(training, used)
    if which is None:
        message = "'tokenizer' is not allowed: the tokenizer is trained on the data and has no chat template"
        checker.problems.append(model_file.problem(("template",), message))
        return None
    folder = weights.described(checker, used[which], model_file, weights.key_of(checker, which, used[which]))
    if folder is None:
        return None
    try:
        return rendered(folder)
    except DataError as error:
        checker.problems.append(model_file.problem(("template",), f"'tokenizer': {error}"))
        return None


def shape(checker: Checker, model: Model, model_file: Document) -> Shape | None:
    """The model's size: of its ``architecture``, else of a checkpoint; of a local one first, without a fetch."""
    architecture: dict[str, Any] | None = model.architecture
    key: Key = ("architecture",)
    where = ""
    if architecture is None:
        used = checkpoints(model, checker.experiment.training, checker.retrain_split)
        which = next((which for which in sorted(used, key=lambda which: used[which].folder is None)), None)
        if which is None:
            message = "architecture: is missing (no checkpoint states it)"
            checker.problems.append(model_file.problem((), message))
            return None
        key = weights.key_of(checker, which, used[which])
        folder = used[which].folder or weights.described(checker, used[which], model_file, key)
        architecture = local_files.architecture(folder) if folder else None
        where = f"{folder / 'config.json'}: " if folder else ""
        if architecture is None:
            fault = model_folder.fault(folder) if folder else None
            if fault:
                checker.problems.append(model_file.problem(key, f"{str(folder)!r}: {fault}"))
            return None
        checker.parts.described = {} if used[which].folder else weights.deciding(architecture)
    try:
        return Shape.of(architecture)
    except (ValueError, TypeError) as error:
        checker.problems.append(model_file.problem(key, f"{where}{error}"))
        return None


def layout(checker: Checker, model: Model) -> Layout | None:
    """The experiment's layout, the model's for that many ranks, or the first that fits; checked against the model's
    size where that is known."""
    chosen = checker.experiment.layout
    if isinstance(chosen, AutoLayout):
        return _auto(checker, chosen)
    if isinstance(chosen, int):
        known = {1: Layout()} | model.layouts
        if chosen not in known:
            allowed = ", ".join(map(str, sorted(known)))
            allowed += f", and mappings as {{tensor: {chosen}}}"
            checker.problem(("layout",), f"model {model.name!r} has no layout for {chosen} ranks; allowed: {allowed}")
            return None
        if known[chosen].ranks != chosen:
            checker.problem(("layout",), f"the model's layout for {chosen} ranks has {known[chosen].ranks} ranks")
        chosen = known[chosen]
    size = checker.parts.shape
    for message in sizing.layout_problems(chosen, size) if size else ():
        checker.problem(("layout",), message)
    if size and size.torch_only and checker.experiment.runtime.kernels == "te":
        checker.problem(("runtime", "kernels"), f"'te' lacks {size.torch_only}; allowed: 'torch'")
    if size and size.experts and size.experts.stacked and checker.experiment.robustness.quantise:
        message = "experts that lie in one tensor (gpt-oss) are not rounded here; allowed: no quantisation"
        checker.problem(("robustness", "quantise"), message)
    return chosen


def _auto(checker: Checker, wanted: AutoLayout) -> Layout | None:
    shape, runs = checker.parts.shape, checker.parts.runs
    if shape is None or runs is None:
        return None  # for which a problem says why
    made = [run.method for _, run in runs]
    found = auto_layout.chosen(wanted, checker.experiment, made, shape)
    if found is None:
        reason = _no_layout(wanted, checker.experiment, made, shape)
        checker.problem(("layout", "auto"), f"{wanted.auto}: {reason}")
    return found


def _no_layout(wanted: AutoLayout, experiment: Experiment, made: Sequence[Method], shape: Shape) -> str:
    """Why no layout was chosen: memory, or, however much a GPU has, batches, optimizers and the model's sizes."""

    def some(gpus: int) -> bool:
        return any(auto_layout.possible(experiment, made, shape, gpus, wanted.node))

    if some(wanted.auto):
        size = f"{wanted.memory_gib:g} GiB less {auto_layout.RESERVE / 2**30:g} for CUDA and NCCL"
        return f"at no layout of so many GPUs every step fits ({size}); `unlearn plan` says what each needs"
    fewer = [str(gpus) for gpus in range(1, min(wanted.auto, TRIED + 1)) if some(gpus)]
    what = "the model's heads, widths and layers, every global_batch and micro_batch, and every optimizer"
    return f"no layout of so many GPUs goes with {what}; allowed: {', '.join(fewer) or 'a layout in full'}"


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
    published = checkpoints(model, training, checker.retrain_split)
    own_tokenizer = training.used and tokenizer_source(training, published) is None
    scratch = training.used and "base" not in published
    if (scratch and model.architecture is None) or (own_tokenizer and model.tokenizer is None):
        checker.problem(("model",), f"{model.name!r} has no 'architecture' or no 'tokenizer' to be made from")


def repeats(checker: Checker) -> None:
    """Whether the models that are trained several times are trained here, and there is a seed for each of them."""
    training = checker.experiment.training
    missing = [which for which in ("target", "retrain") if which not in training.sections]
    if training.repeats > 1 and missing:
        checker.problem(("training", "repeats"), f"{training.repeats} without training.{missing[0]}; allowed: 1")
    for which in () if missing else ("target", "retrain"):
        seed, highest = training.sections[which].seed, SEEDS - training.repeats
        if seed > highest:
            message = f"{seed}, from which {training.repeats} repeats count up; allowed: 0 to {highest}"
            checker.problem(("training", which, "seed"), message)


def tokenizer(checker: Checker, model: Model) -> None:
    """Whether all models have one tokenizer."""
    training = checker.experiment.training
    published = checkpoints(model, training, checker.retrain_split)
    if not training.used or tokenizer_source(training, published) is not None:
        return
    for which in published:
        message = f"its tokenizer is trained on the data, but {which} is a published checkpoint with its own"
        checker.problem(("training", training.used[0]), message)


def special_tokens(checker: Checker, model: Model, model_file: Document) -> None:
    """Whether the tokenizer that is here takes each special token of the template for one token, and the model has its
    ids."""
    from pipeline.data.tokenizer import Tokenizer, ids_needed, special_token_fault

    if importlib.util.find_spec("tokenizers") is None:  # an installation that plans only
        return
    training, parts, shape = checker.experiment.training, checker.parts.template, checker.parts.shape
    used = checkpoints(model, training, checker.retrain_split)
    which = tokenizer_source(training, used)
    tokens = Template.of(parts).special_tokens if parts else ()
    if which is None:
        return
    key, folder = weights.key_of(checker, which, used[which]), used[which].folder
    if folder is None and isinstance(checker.experiment.model, GivenModel):
        folder = weights.described(checker, used[which], model_file, key)
    if folder is None:
        return
    needed = 0
    try:
        tokenizer = Tokenizer.load(folder)
        fault, needed = special_token_fault(tokenizer, tokens), ids_needed(tokenizer, tokens)
    except DataError as error:
        # Of a template without special tokens the step that prepares data says it.
        fault = str(error) if tokens else None
    if fault:
        checker.problems.append(model_file.problem(("template",), fault))
    elif shape and needed > shape.vocabulary:
        message = f"its tokenizer has {needed} ids, but the model's vocab_size is {shape.vocabulary}"
        checker.problems.append(model_file.problem(key, message))


def lengths(checker: Checker, model: Model, model_file: Document, shape: Shape) -> None:
    """Whether sequences and vocabulary fit into the model."""
    length = checker.experiment.data.max_length
    if length > shape.context:
        checker.problem(("data", "max_length"), f"{length} tokens; the model's context is {shape.context}")
    if model.tokenizer and model.tokenizer.vocab_size > shape.vocabulary:
        message = f"{model.tokenizer.vocab_size} is more than the architecture's vocab_size, {shape.vocabulary}"
        checker.problems.append(model_file.problem(("tokenizer", "vocab_size"), message))


def retrain(checker: Checker, model: Model, options: Options) -> None:
    """Whether there is a model that never saw the forget set, where a metric compares with one."""
    split, why = checker.retrain_split, options.needs_retrain
    if why and checker.experiment.training.retrain is None and model.published("retrain", split) is None:
        checker.problem(("training",), f"retrain: is missing, and model {model.name!r} has no published one: {why}")


def new_tokens(checker: Checker, shape: Shape, options: Options) -> None:
    """Whether generated answers fit into the model."""
    new = family(options.family).cost(options, 1).new_tokens
    if new >= shape.context:
        message = f"an answer may have {new} new tokens; the model's context is {shape.context}"
        checker.problem(("evaluation", "options"), message)
