"""The tables of docs/methods.md, made from code: ``python -m tests.support.methods_page`` says which is out of date.

``--write`` writes them anew: the method files, the losses, the rules, the model families, the hyper-parameters.
"""

from __future__ import annotations

import re
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

import annotated_types
import yaml
from pydantic_core import PydanticUndefined

from megatron_ext.losses import LOSSES
from megatron_ext.methods import needed_files
from megatron_ext.model import families
from megatron_ext.schema import Strict
from megatron_ext.schema.safe_yaml import Loader
from megatron_ext.updates import RULES

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "methods.md"
FOLDER = ROOT / "workflow_configs" / "methods"
SIGNS = {annotated_types.Gt: ">", annotated_types.Ge: "≥", annotated_types.Lt: "<", annotated_types.Le: "≤"}
BEFOREHAND = {
    "reference_logps": "reference",
    "preferred_answers_logps": "reference of the other answers",
    "retain_reference_logps": "retain reference",
}
Row = list[str]


def methods() -> Iterator[Row]:
    yield ["file", "forget loss", "retain loss", "rule", "passes a step", "vectors", "beforehand"]
    for path in sorted(FOLDER.glob("*.yaml")):
        given = yaml.load(path.read_text(encoding="utf-8"), Loader)
        forget, retain = (
            LOSSES[given[key]["name"]].model_validate(given[key]) if given.get(key) else None
            for key in ("forget", "retain")
        )
        rule = RULES[given["rule"]["name"]].model_validate(given["rule"])
        assert forget is not None
        sampled = ["sampled answers"] if isinstance(given.get("preferred_answers"), dict) else []
        beforehand = sampled + [BEFOREHAND[key] for key in needed_files(forget, rule) if key in BEFOREHAND]
        names = [f"`{part.name}`" if part else "" for part in (forget, retain, rule)]
        yield [f"`{path.stem}`", *names, _passes(forget, retain, rule), str(rule.vectors), ", ".join(beforehand)]


def _passes(forget: Any, retain: Any, rule: Any) -> str:
    """Passes over as many rows as the batch has forget rows."""
    losses = [loss for loss in (forget, retain) if loss is not None]
    backward = sum(1 + loss.needs_preferred_answers for loss in losses)
    forward = backward + sum(loss.needs_reference_model for loss in losses)
    most = "" if rule.gradients == 1 else "up to "
    layers = ", of layers 0 to `l`" if forget.sees == "hidden" else ""
    return f"{most}{rule.gradients * forward} F {rule.gradients * backward} B{layers}"


def losses() -> Iterator[Row]:
    yield ["loss", "mean over", "sees", "of the model before unlearning", "what it is"]
    for name, kind in LOSSES.items():
        loss = kind()
        needs = ["its logits" if loss.sees == "logits" else "its hidden states"] if loss.needs_reference_model else []
        needs += ["each sequence's log-probability"] if loss.needs_reference_logps else []
        yield [f"`{name}`", f"{loss.unit}s", loss.sees, ", ".join(needs), _summary(kind)]


def rules() -> Iterator[Row]:
    yield ["rule", "retain loss", "vectors", "gradients of a loss a step", "what it is"]
    for name, kind in RULES.items():
        rule = kind.model_construct()
        most = "1" if rule.gradients == 1 else f"up to {rule.gradients}"
        yield [f"`{name}`", "needed" if kind.needs_retain else "may lack", str(rule.vectors), most, _summary(kind)]


BESIDE_LLAMA = {
    "zero_centred_norms": "norms that multiply by 1 + weight",
    "post_norms": "norms behind attention and MLP",
    "scaled_embeddings": "scaled embeddings",
    "output_bias": "a bias behind attention",
    "sinks": "attention sinks",
    "fused": "fused matrices for queries, keys and values and for gate and up",
    "torch_only": "torch's kernels only",
}


def model_families() -> Iterator[Row]:
    yield ["architecture", "models", "beside Llama's decoder"]
    for name, family in sorted(families.known().items()):
        extra = ["a bias on queries, keys and values"] if family.qkv_bias else []
        extra += ["a norm on each head's queries and keys"] if family.qk_norm else []
        extra += ["latent attention"] if family.latent.__func__ is not families.Family.latent.__func__ else []
        extra += [text for key, text in BESIDE_LLAMA.items() if getattr(family, key)]
        extra += ["a mixture of experts"] if family.experts.__func__ is not families.Family.experts.__func__ else []
        extra += ["activation " + family.activation[1]] if family.activation[1] != "silu" else []
        yield [f"`{name}`", _summary(family), ", ".join(extra)]


def hyper_parameters() -> Iterator[Row]:
    yield ["of", "key", "default", "range", "meaning"]
    for name, kind in [*LOSSES.items(), *RULES.items()]:
        for key, default, allowed, meaning in _fields(kind):
            yield [f"`{name}`", f"`{key}`", default, allowed, meaning]


def _fields(kind: type[Strict], prefix: str = "") -> Iterator[tuple[str, str, str, str]]:
    for key, field in kind.model_fields.items():
        if key == "name":
            continue
        if not field.description:
            raise ValueError(f"{kind.__name__}.{key} has no description")
        inside = [each for each in get_args(field.annotation) if isinstance(each, type) and issubclass(each, Strict)]
        allowed = "settings of its own" if inside else ", ".join(_allowed(field.annotation, field.metadata))
        yield prefix + key, _default(field.default), allowed, field.description
        for each in inside:
            yield from _fields(each, f"{prefix}{key}.")


def _allowed(annotation: Any, metadata: list[Any]) -> Iterator[str]:
    bounds = [part for part in metadata if type(part) in SIGNS]
    yield from (f"{SIGNS[type(part)]} {getattr(part, type(part).__name__.lower()):g}" for part in bounds)
    for part in get_args(annotation) if get_origin(annotation) in (Union, types.UnionType) else [annotation]:
        if get_origin(part) is Literal:
            yield from (f"`{choice}`" for choice in get_args(part))
        elif get_origin(part) is dict:
            yield "or one for each topic"
        elif hasattr(part, "__metadata__"):  # bounds inside a union
            yield from _allowed(part.__origin__, [each for field in part.__metadata__ for each in field.metadata])


def _default(value: Any) -> str:
    if value is PydanticUndefined or value is None:
        return "none" if value is None else "required"
    return f"`{value}`" if isinstance(value, str) else f"{value:g}"


def _summary(kind: type) -> str:
    """The first sentence of the docstring of the file that has the class."""
    return (sys.modules[kind.__module__].__doc__ or "").partition("\n")[0].strip().rstrip(".")


TABLES: dict[str, Callable[[], Iterator[Row]]] = {
    "method files": methods,
    "losses": losses,
    "rules": rules,
    "model families": model_families,
    "hyper-parameters": hyper_parameters,
}


def table(rows: Iterator[Row]) -> str:
    head, *body = rows
    lines = [[cell.replace("|", r"\|") for cell in line] for line in (head, ["---"] * len(head), *body)]
    return "\n".join(re.sub(r" +", " ", f"| {' | '.join(line)} |") for line in lines) + "\n"


def block(name: str) -> re.Pattern[str]:
    """Where the page has a table."""
    return re.compile(rf"(?<=<!-- {name} -->\n\n).*?(?=\n<!-- /{name} -->)", re.DOTALL)


def main(arguments: list[str]) -> None:
    """Compare the page's tables with the code's, or write them."""
    page = PAGE.read_text(encoding="utf-8")
    for name, rows in TABLES.items():
        wanted, (shown,) = table(rows()), block(name).findall(page)
        if arguments == ["--write"]:
            page = block(name).sub(lambda _, wanted=wanted: wanted, page)  # type: ignore[misc]
        elif shown != wanted:
            sys.exit(f"{PAGE.relative_to(ROOT)}: the table of {name} is not the code's")
    if arguments == ["--write"]:
        PAGE.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
