"""What a method gives to an unlearning step's specification, and what does not fit together in it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from megatron_ext.config import Layout, Runtime, RuntimeSettings, shared
from megatron_ext.model.families import lacking
from megatron_ext.specs import Topic, Unlearning, UnlearnSpec
from pipeline.config.method_schema import Method
from pipeline.config.sizing import Shape

Key = tuple[str, ...]
# Where a specification's entries stand in a method file.
_KEYS = {
    "forget_loss": ("forget",),
    "retain_loss": ("retain",),
    "rule": ("rule",),
    "trainable_layers": ("trainable_layers",),
}
_EXPERIMENT = ("runtime", "layout")  # entries that the experiment file gives


def runtime(layout: Layout, settings: RuntimeSettings, threads: int | None = None) -> Runtime:
    """What a step is told of where it runs; ``threads`` replaces those of ``settings``, where it is given."""
    given = shared(settings, RuntimeSettings)
    return Runtime(layout=layout, **(given if threads is None else given | {"threads": threads}))


def settings(method: Method, runtime: Runtime) -> dict[str, Any]:
    """The entries of an ``UnlearnSpec`` that are no paths, but for the seed."""
    return {
        "forget_loss": method.forget,
        "retain_loss": method.retain,
        "rule": method.rule,
        "trainable_layers": method.trainable_layers,
        "batching": method.training.batching(runtime.layout),
        "runtime": runtime,
        **shared(method.training, Unlearning),
    }


def problems(
    method: Method, runtime: Runtime, shape: Shape | None, topics: Sequence[str] = ("forget",)
) -> list[tuple[Key, str]]:
    """Everything that does not fit together: the key in the method file, or that of the experiment, and why.

    A key of the experiment begins with ``runtime`` or ``layout``. ``topics`` are those that take turns.
    """
    spec = UnlearnSpec.model_construct(
        checkpoint=Path(),
        topics=[Topic.model_construct(name=name, forget_data=Path(), retain_data=Path()) for name in topics],
        output=Path(),
        **settings(method, runtime),
    )
    found = [_located(text, method) for text in spec.method_problems()]
    needs = method.forget.needs_preferred_answers
    if needs and method.preferred_answers is None:
        found.append(
            (
                ("preferred_answers",),
                f"is missing, and the loss {method.forget.name!r} needs it; allowed: idk, or how answers are sampled",
            )
        )
    if method.preferred_answers is not None and not needs:
        given = method.preferred_answers if isinstance(method.preferred_answers, str) else "a way of sampling"
        message = f"{given!r} is given, but the loss {method.forget.name!r} reads none"
        found.append((("preferred_answers",), message))
    lora = method.training.lora
    if lora is not None and shape is not None:
        missing = lora.model_problems(
            shape.fused, shape.experts is not None, shape.latent is not None, method.trainable_layers
        )
        found += [_located(text, method) for text in missing]
    return found + _trainable_layers(method, runtime.layout, shape)


def steps_of_a_pass(training: Unlearning, batch: int, rows: int) -> int:
    """Optimizer steps of a pass over a forget set of so many rows, as ``megatron_ext.data.sampling`` counts them."""
    if training.accumulation is None:
        return math.ceil(rows / batch)
    return max(1, math.ceil(rows / (batch // training.accumulation)) // training.accumulation)


def steps(training: Unlearning, batch: int, rows: int) -> int:
    """Optimizer steps of all passes, counted in the same way."""
    found = training.epochs * steps_of_a_pass(training, batch, rows)
    whole = max(1, round(found)) if training.accumulation is None else math.ceil(found)
    return min(whole, training.max_steps or whole)


def warmup_steps(training: Unlearning, batch: int, rows: int) -> int:
    """Optimizer steps of ``warmup_epochs``, counted in the same way."""
    if training.accumulation is None:
        return round(training.warmup_epochs * steps_of_a_pass(training, batch, rows))
    return int(training.warmup_epochs * rows // batch)


def experiments_own(key: Key) -> bool:
    """Whether a problem's key is one of the experiment's."""
    return key[0] in _EXPERIMENT


def _located(text: str, method: Method) -> tuple[Key, str]:
    """``key.part: message`` as a key and a message: a rule names its own fields and the specification's."""
    name, _, message = text.partition(": ")
    head, *rest = name.split(".")
    if head in type(method.rule).model_fields and head != "name":
        return ("rule", head, *rest), message
    if head in _EXPERIMENT:
        return (head, *rest), message
    return (*_KEYS.get(head, ("training", head)), *rest), message


def _trainable_layers(method: Method, layout: Layout, shape: Shape | None) -> list[tuple[Key, str]]:
    if method.trainable_layers is None or shape is None:
        return []
    layer = method.trainable_layers.up_to
    if layer >= shape.layers:
        return [
            (
                ("trainable_layers", "up_to"),
                f"{layer} is none of the model's {shape.layers} layers; allowed: 0 to {shape.layers - 1}",
            )
        ]
    if layer + 1 < layout.pipeline:
        message = f"{layer}: layers 0 to {layer} are built, fewer than the layout's {layout.pipeline} pipeline stages"
        return [(("trainable_layers", "up_to"), message)]
    lacks = lacking(shape.latent, method.trainable_layers.target_modules)
    if lacks:
        key, _, message = lacks.partition(": ")
        return [(("trainable_layers", key), message)]
    return []
