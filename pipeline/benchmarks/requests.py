"""What most families ask: prompts with targets whose log-probability is wanted, and prompts to continue."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.benchmarks.base import LM, Requests, describe
from pipeline.benchmarks.leaks import DRAWN
from pipeline.data.errors import DataError

if TYPE_CHECKING:
    from megatron_ext.inference.generation import GenerateRequest
    from megatron_ext.inference.scoring import Score
    from pipeline.data.tokenizer import Tokenizer

TOKENWISE = ("log_probs", "means", "variances", "correct")


@dataclass(frozen=True)
class Instance:
    """One example of a set, as token ids.

    Attributes:
        set: name of the evaluated set
        index: number of the row in the set
        texts: entries of the example that are known before the model answers
        targets: name -> (prompt ids, target ids) whose log-probability is wanted
        tokenwise: targets of which numbers of every token are wanted too
        gradients: targets of which the norm of the loss's gradient is wanted too
        generate: what the model is to continue, or ``None``
        drawn: what the model is to continue besides, in other ways
        cuts: name -> number of tokens; the example has the text of the first so many generated tokens under that name
    """

    set: str
    index: int
    texts: Mapping[str, Any]
    targets: Mapping[str, tuple[list[int], list[int]]]
    tokenwise: frozenset[str] = frozenset()
    gradients: frozenset[str] = frozenset()
    generate: GenerateRequest | None = None
    drawn: tuple[GenerateRequest, ...] = ()
    cuts: Mapping[str, int] = field(default_factory=dict)


def requests_of(instances: Sequence[Instance], data: Path, vocabulary: int) -> Requests:
    """A function that asks a model for every instance's targets and generation, and returns their examples.

    An example has the instance's ``texts`` and these entries:

    - ``scores``: target name -> ``log_prob`` (nats, summed over its tokens, end token included), ``tokens`` and
      ``avg_loss`` (``-log_prob / tokens``); where it was asked for, the lists ``log_probs``, ``means``, ``variances``
      and ``correct`` (``megatron_ext.inference.scoring.Tokenwise``), and ``gradient_norm``
    - ``generation``: the text up to the first stop, without white space around it, or null
    - ``generated``: its number of tokens, where there is a generation
    - the texts of ``cuts``
    - ``drawn``: the texts of ``drawn``, where there are any

    Raises:
        DataError: an instance has an id that the model does not have
    """
    for instance in instances:
        ids = [i for prompt, target in instance.targets.values() for i in (*prompt, *target)]
        ids += instance.generate.prompt if instance.generate else []
        if ids and max(ids) >= vocabulary:
            raise DataError(
                f"{data}: set {instance.set!r}, example {instance.index}: id {max(ids)}, but the model has {vocabulary}"
            )

    def ask(model: LM) -> list[dict[str, Any]]:
        return _ask(instances, model)

    return ask


def _ask(instances: Sequence[Instance], model: LM) -> list[dict[str, Any]]:
    from megatron_ext.inference.scoring import ScoreRequest

    wanted = [(instance, name) for instance in instances for name in instance.targets]
    score_requests = [ScoreRequest(*instance.targets[name], name in instance.tokenwise) for instance, name in wanted]
    scores = iter(model.score(score_requests))
    with_gradient = [
        request for (instance, name), request in zip(wanted, score_requests, strict=True) if name in instance.gradients
    ]
    norms = iter(model.gradient_norms(with_gradient) if with_gradient else [])
    answers = iter(model.generate([instance.generate for instance in instances if instance.generate is not None]))
    also = [request for instance in instances for request in instance.drawn]
    drawn = iter(model.generate(also) if also else [])
    examples = []
    for instance in instances:
        example: dict[str, Any] = {"set": instance.set, "index": instance.index, **instance.texts}
        raw = {}
        for name, (_, target) in instance.targets.items():
            raw[name] = _raw(example, name, target, next(scores))
            if name in instance.gradients:
                raw[name]["gradient_norm"] = next(norms)
        example |= {"generation": None, "scores": raw}
        if instance.generate is not None:
            ids = next(answers)
            example["generation"] = text_of(ids, instance.generate.stops, model.tokenizer)
            for name, tokens in instance.cuts.items():
                example[name] = text_of(ids[:tokens], instance.generate.stops, model.tokenizer)
            example["generated"] = len(ids)
        if instance.drawn:
            example[DRAWN] = [text_of(next(drawn), one.stops, model.tokenizer) for one in instance.drawn]
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
            f"{describe(example)}: target {name!r} of {len(target)} tokens was given the log-probability "
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
