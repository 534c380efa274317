"""What a benchmark family says: what a model is asked, and how its answers become metrics."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

from megatron_ext.schema import Strict
from pipeline.benchmarks.request_sets import request_set
from pipeline.data.errors import DataError

if TYPE_CHECKING:
    from pathlib import Path

    from megatron_ext.inference.generation import GenerateRequest
    from megatron_ext.inference.scoring import Score, ScoreRequest
    from pipeline.data.tokenizer import Tokenizer

Example = Mapping[str, Any]
Better = Literal["higher", "lower", "one", "zero", None]
Evidence = Literal["knowledge", "likeness", "test", None]


@dataclass(frozen=True)
class Metric:
    """One number of ``evaluation.json``.

    Attributes:
        key: its name there; where the code of a benchmark's authors computes it in another way than open-unlearning,
            that variant's key ends in the benchmark's name, ``__muse`` for example
        title: its name in tables
        better: which way is better; ``"one"`` where the ideal is 1, ``"zero"`` where it is 0, ``None`` where neither is
        definition: what it is, in one line
        source: whose definition it is
        headline: whether it belongs in a short table
        evidence: what it says of what should be forgotten: how much a model still knows of it (``"knowledge"``: higher
            the more), how a model that never knew differs (``"likeness"``: retrain's value is the ideal), or the
            p-value of a test against retrain (``"test"``); ``None`` where it is about something else
        ideal: what a model that never knew shows, where ``better`` does not say it; NaN where only retrain can
    """

    key: str
    title: str
    better: Better
    definition: str
    source: str
    headline: bool = False
    evidence: Evidence = None
    ideal: float | None = None

    def filled(self, **words: str) -> Metric:
        """This entry of a catalogue with its placeholders, ``{set}`` for example, replaced by ``words``."""
        texts = {name: getattr(self, name).format(**words) for name in ("key", "title", "definition", "source")}
        return replace(self, **texts)


def of_request(number: int, metric: Metric, **words: str) -> Metric:
    """A metric of what a further request adds: no way is better, for it should fall with that request, not before.

    Args:
        number: Of the request, from 2.
        metric: An entry of a catalogue, with placeholders for ``set`` and ``title``.
        words: What its other placeholders stand for.
    """
    filled = metric.filled(set=request_set(number), title=f"Request {number}", **words)
    likeness = metric.better == "one"
    return replace(filled, better="one" if likeness else None, evidence="likeness" if likeness else "knowledge")


@dataclass(frozen=True)
class Cost:
    """What an evaluation asks of a model at most; time and memory are estimated from it.

    Attributes:
        sequences: Sequences that are scored.
        answers: Answers that are generated.
        new_tokens: New tokens of the longest answer.
    """

    sequences: int
    answers: int
    new_tokens: int


class Options(Strict):
    """Settings of a family; each family has a subclass, whose ``family`` is its name."""

    family: str

    @property
    def needs_retrain(self) -> str | None:
        """Why an evaluation of retrain must be given, or ``None`` where it need not."""
        return None

    @property
    def hub_datasets(self) -> dict[str, str]:
        """Data sets of the hub, with revisions, that an evaluation reads from the hub's local cache."""
        return {}

    def without_retrain(self) -> Options:
        """The same without what needs an evaluation of retrain."""
        return self


class LM(Protocol):
    """A loaded model. Every rank calls it with the same arguments and gets every answer.

    Attributes:
        rank: this process's rank
        tokenizer: tokenizer of the data
        context: the largest number of tokens that the model reads
    """

    rank: int
    tokenizer: Tokenizer
    context: int

    def score(self, requests: Sequence[ScoreRequest]) -> list[Score]:
        """As ``megatron_ext.inference.scoring.score``, in any order; equal requests are computed once."""

    def generate(self, requests: Sequence[GenerateRequest]) -> list[list[int]]:
        """Greedy continuations, as ``megatron_ext.inference.generation.generate``.

        A continuation ends before the end token, or with the token that completes a stop.
        """

    def gradient_norms(self, requests: Sequence[ScoreRequest]) -> list[float]:
        """As ``megatron_ext.inference.gradient_norms.gradient_norms``."""


# What a family asks: a function of the model, which returns the same examples on every rank. All files have been read.
Requests = Callable[[LM], list[dict[str, Any]]]


class Family(Protocol):
    """A benchmark family; ``pipeline.benchmarks.tofu.evaluate`` is one.

    An example, in memory and as a line of ``examples.jsonl``, is an object with ``set`` (text) and ``index`` (number),
    which name it, and all raw numbers and texts that the metrics are made of.
    """

    options: type[Options]

    def metrics(self, options: Any) -> tuple[Metric, ...]:
        """Every metric that can be reported with these options, in the order of a table."""

    def trade_offs(self, options: Any) -> tuple[tuple[str, str], ...]:
        """Keys of metrics to draw against each other: of what is kept, and of what is forgotten."""

    def sets(self, options: Any) -> tuple[str, ...]:
        """Names of the evaluated sets: files ``evaluation/<set>.jsonl`` of the prepared folder."""

    def cost(self, options: Any, forget_rows: int) -> Cost:
        """What an evaluation with these options asks of a model at most, for a forget set of so many rows."""

    def requests(self, data: Path, options: Any, tokenizer: Tokenizer, vocabulary: int) -> Requests:
        """What to ask of a model.

        Args:
            data: folder that the prepare step wrote
            options: the family's settings
            tokenizer: tokenizer of the data
            vocabulary: number of the model's token ids

        Raises:
            DataError: a file cannot be used; the message names file and line
        """

    def compute_metrics(
        self, examples: Sequence[Example], options: Any, retain_examples: Sequence[Example] | None = None
    ) -> dict[str, float]:
        """Compute the metrics, in the order of ``metrics``.

        Args:
            examples: the model's examples
            options: the family's settings
            retain_examples: retrain's examples; without them metrics that compare with retrain are left out

        Raises:
            DataError: an example lacks what a metric needs, or the options need retrain's examples
        """

    def collapse(self, examples: Sequence[Example], options: Any, metrics: Mapping[str, float]) -> list[str]:
        """Reasons to take the model for destroyed, one sentence each; empty where there are none."""


@runtime_checkable
class Judged(Protocol):
    """A family whose answers a language model can judge (``pipeline.steps.judge``)."""

    def judged(self, options: Any) -> Mapping[Literal["forget", "retain"], str]:
        """The set whose answers should have been forgotten, and the one whose answers should have been kept.

        Empty where these options generate no answers. Examples of the sets have the texts ``question``, ``answer`` and
        ``generation``.
        """


@runtime_checkable
class Shown(Protocol):
    """A family whose examples can be shown in words: what was asked, what is true, and what a model generated."""

    def to_forget(self, options: Any) -> frozenset[str]:
        """The evaluated sets whose answers should be forgotten, now or by a later request; others should stay."""


def of_set(examples: Sequence[Example], name: str) -> list[Example]:
    """The examples of a set; raises ``DataError`` where there are none."""
    found = [example for example in examples if example["set"] == name]
    if not found:
        raise DataError(f"no examples of set {name!r}")
    return found


def describe(example: Example) -> str:
    """What to call an example in a message."""
    return f"set {example['set']!r}, example {example['index']}"


def raw_score(example: Example, target: str) -> Mapping[str, Any]:
    """The entry of ``scores`` that ``pipeline.benchmarks.requests`` wrote for a target.

    Raises:
        DataError: there is none
    """
    score = (example.get("scores") or {}).get(target)
    if score is None:
        raise DataError(f"{describe(example)}: no score of target {target!r}")
    return score


def avg_loss(example: Example, target: str) -> float:
    """Negative log-probability of an example's target in nats per token.

    Raises:
        DataError: the score is missing or not a finite number
    """
    loss = raw_score(example, target).get("avg_loss")
    if not isinstance(loss, int | float) or not math.isfinite(loss):
        raise DataError(f"{describe(example)}: target {target!r} has avg_loss {loss!r}")
    return loss


def tokenwise(example: Example, target: str, key: str) -> list[Any]:
    """A number of each token of an example's target: ``log_probs``, ``means``, ``variances`` or ``correct``."""
    values = raw_score(example, target).get(key)
    if not isinstance(values, list):
        raise DataError(f"{describe(example)}: target {target!r} has no {key!r}")
    return values


def generation(example: Example) -> str:
    """The text that the model generated after an example's prompt; raises ``DataError`` where there is none."""
    text = example.get("generation")
    if not isinstance(text, str):
        raise DataError(f"{describe(example)}: no generation")
    return text
