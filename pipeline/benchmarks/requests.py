"""Examples as prompts with targets and a place to generate from: what most families ask."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.benchmarks.base import LM, Requests, where
from pipeline.data.errors import DataError

if TYPE_CHECKING:
    from megatron_ext.inference.generation import GenerateRequest
    from megatron_ext.inference.scoring import Score
    from pipeline.data.tokenizer import Tokenizer

TOKENWISE = ("log_probs", "means", "variances", "correct")


@dataclass(frozen=True)
class Instance:
    """One example of a set, as token ids.

    ``texts``: what the example says of it beside answers, as it stands. ``targets``: name -> (prompt, target), whose
    log-probability is wanted; of those in ``tokenwise`` every token's numbers too, of those in ``gradients`` the
    gradient's norm. ``generate``: what to continue, or ``None``; ``cuts``: name -> tokens, under which the example has
    the text of only so many generated tokens.
    """

    set: str
    index: int
    texts: Mapping[str, Any]
    targets: Mapping[str, tuple[list[int], list[int]]]
    tokenwise: frozenset[str] = frozenset()
    gradients: frozenset[str] = frozenset()
    generate: GenerateRequest | None = None
    cuts: Mapping[str, int] = field(default_factory=dict)


def requests_of(items: Sequence[Instance], data: Path, vocabulary: int) -> Requests:
    """Asks for every item's targets and generation. Raises ``DataError`` for an id that the model does not have.

    Of an item the example has ``texts``; ``scores``: target name -> ``log_prob`` (nats, summed over its tokens, end
    token included), ``tokens``, ``avg_loss`` (``-log_prob / tokens``), where asked for the lists ``log_probs``,
    ``means``, ``variances`` and ``correct`` (``megatron_ext.inference.scoring.Tokenwise``) and ``gradient_norm``;
    ``generation``: the text up to the first stop, without white space around it, or null; ``generated``, its number
    of tokens; and the
    texts of ``cuts``.
    """
    for item in items:
        ids = [i for prompt, target in item.targets.values() for i in (*prompt, *target)]
        ids += item.generate.prompt if item.generate else []
        if ids and max(ids) >= vocabulary:
            raise DataError(
                f"{data}: set {item.set!r}, example {item.index}: id {max(ids)}, but the model has {vocabulary}"
            )

    def ask(model: LM) -> list[dict[str, Any]]:
        return _ask(items, model)

    return ask


def _ask(items: Sequence[Instance], model: LM) -> list[dict[str, Any]]:
    from megatron_ext.inference.scoring import ScoreRequest

    wanted = [(item, name) for item in items for name in item.targets]
    requests = [ScoreRequest(*item.targets[name], name in item.tokenwise) for item, name in wanted]
    scores = iter(model.score(requests))
    steep = [request for (item, name), request in zip(wanted, requests, strict=True) if name in item.gradients]
    norms = iter(model.gradient_norms(steep) if steep else [])
    answers = iter(model.generate([item.generate for item in items if item.generate is not None]))
    examples = []
    for item in items:
        example: dict[str, Any] = {"set": item.set, "index": item.index, **item.texts}
        raw = {}
        for name, (_, target) in item.targets.items():
            raw[name] = _raw(example, name, target, next(scores))
            if name in item.gradients:
                raw[name]["gradient_norm"] = next(norms)
        example |= {"generation": None, "scores": raw}
        if item.generate is not None:
            ids = next(answers)
            example["generation"] = text_of(ids, item.generate.stops, model.tokenizer)
            for name, tokens in item.cuts.items():
                example[name] = text_of(ids[:tokens], item.generate.stops, model.tokenizer)
            example["generated"] = len(ids)
        examples.append(example)
    return examples


def text_of(ids: Sequence[int], stops: Sequence[str], tokenizer: Tokenizer) -> str:
    """The text of generated ids: up to the first stop, without white space around it."""
    text = tokenizer.decode(ids)
    ends = [place for stop in stops if (place := text.find(stop)) >= 0]
    return text[: min(ends, default=len(text))].strip()


def _raw(example: Mapping[str, Any], name: str, target: Sequence[int], score: Score) -> dict[str, Any]:
    """What an example holds of a target; raises ``DataError`` for a score that is not finite."""
    if not math.isfinite(score.log_prob) or score.tokens != len(target):
        raise DataError(
            f"{where(example)}: target {name!r} of {len(target)} tokens was given the log-probability "
            f"{score.log_prob} over {score.tokens} tokens"
        )
    raw: dict[str, Any] = {
        "log_prob": score.log_prob,
        "tokens": score.tokens,
        "avg_loss": -score.log_prob / score.tokens,
    }
    if score.tokenwise is not None:
        raw |= {key: getattr(score.tokenwise, key) for key in TOKENWISE}
    return raw
