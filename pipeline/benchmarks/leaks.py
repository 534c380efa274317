"""leak@k: whether any of k sampled answers to a question holds what should have been forgotten.

A model that no longer says an answer when it is asked greedily may still say it now and then. Every family of questions
with answers has this as an option, for the questions of its forget set.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Self

from pydantic import Field, model_validator

from megatron_ext.schema import Strict
from pipeline.benchmarks.base import Example, Metric, Options, describe
from pipeline.data.errors import DataError
from pipeline.metrics.aggregate import any_of, mean
from pipeline.metrics.text import rouge_recall

if TYPE_CHECKING:
    from megatron_ext.inference.generation import GenerateRequest

DRAWN = "drawn"  # in an example: the texts of its sampled answers
LEAK = Metric(
    "{set}_leak_at_{k}",
    "{title} leak@{k}",
    "lower",
    "probability that any of {k} sampled answers holds the answer, estimated from {samples}: mean of 1 - C(n - c, k) / "
    "C(n, k), n = {samples}, c = those with a ROUGE-L recall of at least {holds}, Porter stemmer on; temperature "
    "{temperature}",
    "after Leak@k (arXiv 2511.04934); estimator of Chen et al. 2021 (arXiv 2107.03374), equation 1",
    evidence="knowledge",
)


class LeakOptions(Strict):
    """How many answers are drawn to each question of the forget set, how, and when one holds the answer."""

    k: list[int] = Field([1, 8], min_length=1, description="of how many sampled answers any may hold the answer")
    samples: int = Field(8, ge=1, description="answers that are drawn; at least the largest k")
    temperature: float = Field(1.0, gt=0, allow_inf_nan=False, description="of the sampling")
    top_p: float = Field(1.0, gt=0, le=1, description="share of the probability that is drawn from")
    top_k: int | None = Field(None, ge=1, description="tokens that are drawn from; default: all")
    holds: float = Field(1.0, gt=0, le=1, description="ROUGE-L recall from which on an answer counts; 1: every word")

    @model_validator(mode="after")
    def _enough(self) -> Self:
        if min(self.k) < 1 or max(self.k) > self.samples or len(set(self.k)) < len(self.k):
            raise ValueError(f"k: {self.k}; allowed: different numbers from 1 to samples, {self.samples}")
        return self

    def drawn(self, request: GenerateRequest) -> tuple[GenerateRequest, ...]:
        """What is asked besides a greedy answer."""
        from dataclasses import replace

        from megatron_ext.inference.generation import samples
        from megatron_ext.inference.sampling import Sampling

        sampling = Sampling(self.temperature, self.top_p, self.top_k)
        return tuple(samples(replace(request, sampling=sampling), self.samples))


class LeakingOptions(Options):
    """Settings of a family of questions with answers."""

    leak: LeakOptions | None = Field(None, description="leak@k: whether any of k sampled answers holds the answer")


def catalogue(options: LeakOptions | None, sets: Mapping[str, str]) -> list[Metric]:
    """leak@k of each set, by its title, where it is asked for."""
    if options is None:
        return []
    words = {key: f"{getattr(options, key):g}" for key in ("samples", "holds", "temperature")}
    return [LEAK.filled(set=name, title=title, k=str(k), **words) for name, title in sets.items() for k in options.k]


def compute(options: LeakOptions | None, name: str, examples: Sequence[Example]) -> dict[str, float]:
    """The metrics of ``catalogue`` of one set.

    Args:
        options: what was asked for
        name: the set
        examples: its examples, with their sampled answers

    Raises:
        DataError: an example lacks some of its sampled answers
    """
    if options is None:
        return {}
    held = []
    for example in examples:
        texts = example.get(DRAWN)
        if not isinstance(texts, list) or len(texts) != options.samples:
            raise DataError(f"{describe(example)}: has not {options.samples} sampled answers")
        recalls = rouge_recall([example["answer"]] * len(texts), texts)["rougeL"]
        held.append(sum(recall >= options.holds for recall in recalls))
    return {f"{name}_leak_at_{k}": mean([any_of(options.samples, count, k) for count in held]) for k in options.k}
