"""Memorisation and membership: how much a model knows of what it should have forgotten.

The options, the catalogue and the functions that take sets or targets serve every family. ``compute`` is for families
of questions with answers: it reads the target ``answer`` of ``forget`` and ``holdout``, which no model saw in training.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any, Self

from pydantic import Field, field_validator, model_validator

from pipeline.benchmarks.attacks import ATTACKS, Attack
from pipeline.benchmarks.base import Example, Metric, avg_loss, describe, of_set, raw_score, tokenwise
from pipeline.benchmarks.leaks import LeakingOptions
from pipeline.data.errors import DataError
from pipeline.metrics.aggregate import mean
from pipeline.metrics.membership import auc, min_k, min_k_plus_plus, priv_leak, zlib_ratio
from pipeline.metrics.memorisation import exact_memorisation, extraction_strength

OPEN_UNLEARNING = "open-unlearning (locuslab/open-unlearning at d3d7cf9)"
HOLDOUT = "holdout"
SETS = ("forget", HOLDOUT)
UNENDED = "answer_without_end"  # the answer's tokens but for the end token, of which open-unlearning takes gradients

Scored = Callable[[Example], float]


class PrivacyOptions(LeakingOptions):
    """Which memorisation and membership metrics are wanted.

    An AUC is 1 where an attack tells all members, the examples that were trained on, from the others.
    """

    memorisation: bool = Field(False, description="extraction strength and exact memorisation of the forget set")
    membership: list[Attack] = Field([], description="attacks that tell the forget set from the holdout set")
    privleak: bool = Field(False, description="PrivLeak, from Min-40% and retrain's evaluation")
    privleak_retrain_auc: float | None = Field(
        None, ge=0, lt=1, description="retrain's AUC of Min-40%, in place of its evaluation"
    )

    @field_validator("membership")
    @classmethod
    def _each_once(cls, names: list[Attack]) -> list[Attack]:
        if len(set(names)) < len(names):
            raise ValueError(f"{names} names one twice")
        return names

    @model_validator(mode="after")
    def _used(self) -> Self:
        if self.privleak_retrain_auc is not None and not self.privleak:
            raise ValueError("privleak_retrain_auc: is read only with 'privleak: true'")
        return self

    @property
    def needs_retrain(self) -> str | None:
        if "reference" in self.membership:
            return "the attack 'reference' compares a model's losses with retrain's"
        if self.privleak and self.privleak_retrain_auc is None:
            return "'privleak' compares a model's AUC with retrain's ('privleak_retrain_auc' would stand in for it)"
        return None

    def without_retrain(self) -> Self:
        """Without the attack ``reference``, and without PrivLeak where nothing stands in for retrain's AUC."""
        membership = [name for name in self.membership if name != "reference"]
        privleak = self.privleak and self.privleak_retrain_auc is not None
        return self.model_copy(update={"membership": membership, "privleak": privleak})

    @property
    def needs_holdout(self) -> bool:
        return bool(self.membership) or self.privleak

    def tokenwise(self, name: str) -> bool:
        """Whether numbers of every token of a set's answers are wanted."""
        attacked = self.privleak or not {"min_k", "min_k_plus_plus"}.isdisjoint(self.membership)
        return (name in SETS and attacked) or (name == "forget" and self.memorisation)


@dataclass(frozen=True)
class Words:
    """What a family's definitions say where the shared ones have a placeholder.

    Attributes:
        unit: what is scored of an example
        sets: what forget and holdout are
        memorised: the examples that memorisation is measured on
        predicted: what the least ``k`` of extraction strength must fulfil
        tokens: the tokens that exact memorisation counts
        privleak_limit: which tokens PrivLeak reads
        membership_limit: how long the examples of membership attacks are
    """

    unit: str
    sets: str
    memorised: str
    predicted: str
    tokens: str
    privleak_limit: str = ""
    membership_limit: str = ""


PRIVLEAK = Metric(
    "privleak",
    "PrivLeak",
    "zero",
    "100 (a - r) / (r + 1e-10), a = 1 - AUC of Min-40% between forget and holdout {sets}, r = retrain's a"
    "{privleak_limit}",
    f"MUSE (arXiv 2407.06460), section 4; {OPEN_UNLEARNING}",
    headline=True,
    evidence="likeness",
)
MEMORISATION = (
    Metric(
        "extraction_strength",
        "Extraction strength",
        "lower",
        "mean over {memorised} of 1 - k/n, for the least k such that {predicted}; at least 1/n",
        f"Carlini et al. 2021 (arXiv 2012.07805); {OPEN_UNLEARNING}",
        evidence="knowledge",
    ),
    Metric(
        "exact_memorisation",
        "Exact memorisation",
        "lower",
        "mean over {memorised} of the share of {tokens} that are predicted",
        f"Tirumala et al. 2022 (arXiv 2205.10770); {OPEN_UNLEARNING}",
        evidence="knowledge",
    ),
)
MEMBERSHIP = Metric(
    "mia_{attack}",
    "Membership AUC, {title}",
    None,
    "probability that {score} is higher of a holdout {unit} than of a forget {unit}{membership_limit}; 1: forget looks "
    "memorised",
    f"{{paper}}; {OPEN_UNLEARNING}",
    evidence="likeness",
    ideal=0.5,
)


def catalogue(options: PrivacyOptions, words: Words) -> list[Metric]:
    """PrivLeak, memorisation and membership, as far as they are asked for."""
    return [*privleak(options, words), *memorisation(options, words), *membership(options, words)]


def privleak(options: PrivacyOptions, words: Words) -> list[Metric]:
    """PrivLeak, where it is asked for."""
    return [PRIVLEAK.filled(**asdict(words))] if options.privleak else []


def memorisation(options: PrivacyOptions, words: Words) -> list[Metric]:
    """Extraction strength and exact memorisation, where they are asked for."""
    return [metric.filled(**asdict(words)) for metric in MEMORISATION] if options.memorisation else []


def membership(options: PrivacyOptions, words: Words) -> list[Metric]:
    """The AUC of each attack that is asked for."""
    found = []
    for attack in options.membership:
        title, score, paper = ATTACKS[attack]
        score = score.format(unit=words.unit)
        found.append(MEMBERSHIP.filled(attack=attack, title=title, score=score, paper=paper, **asdict(words)))
    return found


def compute(
    examples: Sequence[Example], options: PrivacyOptions, retrain: Sequence[Example] | None
) -> dict[str, float]:
    """The metrics of ``catalogue`` from the target ``answer`` of the sets ``forget`` and ``holdout``.

    Args:
        examples: the model's examples
        options: which metrics are wanted
        retrain: retrain's examples, where there are any

    Raises:
        DataError: an example, or one of retrain's, lacks what a metric needs
    """
    values: dict[str, float] = {}
    if options.memorisation:
        correct = [_without_end(example, "correct") for example in of_set(examples, "forget")]
        values["extraction_strength"] = mean([extraction_strength(tokens) for tokens in correct])
        values["exact_memorisation"] = mean(
            [share for row in correct if (share := exact_memorisation(row)) is not None]
        )
    return values | compute_membership(examples, options, retrain, SETS)


def compute_membership(
    examples: Sequence[Example], options: PrivacyOptions, retrain: Sequence[Example] | None, sets: tuple[str, str]
) -> dict[str, float]:
    """The membership attacks and PrivLeak, as ``compute``, of other ``sets``: the members, and the others."""
    values = {f"mia_{attack}": auc_of(examples, sets, attack_score(attack, retrain)) for attack in options.membership}
    if options.privleak:
        score = attack_score("min_k", None)
        reference = options.privleak_retrain_auc
        if reference is None:
            with naming_retrain():
                reference = auc_of(retrain or [], sets, score)
        values["privleak"] = priv_leak(auc_of(examples, sets, score), reference)
    return values


def auc_of(examples: Sequence[Example], sets: tuple[str, str], score: Scored) -> float:
    """How well a score tells the first of two sets, the members, from the second.

    Raises ``DataError`` naming an example without a finite score.
    """
    found: dict[str, list[float]] = {name: [] for name in sets}
    for name in sets:
        for example in of_set(examples, name):
            value = score(example)
            if not math.isfinite(value):
                raise DataError(f"{describe(example)}: its membership score is {value}")
            found[name].append(value)
    return auc(members=found[sets[0]], others=found[sets[1]])


def attack_score(attack: Attack, retrain: Sequence[Example] | None) -> Scored:
    """The attack's score of an example's answer: lower where it looks like one that was trained on."""
    if attack == "loss":
        return lambda example: avg_loss(example, "answer")
    if attack == "zlib":
        return lambda example: zlib_ratio(avg_loss(example, "answer"), labelled(example))
    if attack == "reference":
        return less_retrain(lambda example: avg_loss(example, "answer"), retrain)
    if attack == "gradnorm":
        return lambda example: gradient_norm(example, UNENDED)
    if attack == "min_k":
        return lambda example: min_k(_without_end(example, "log_probs"))
    return lambda example: min_k_plus_plus(
        _without_end(example, "log_probs"), _without_end(example, "means"), _without_end(example, "variances")
    )


def _without_end(example: Example, key: str) -> list[Any]:
    """A number of each of the answer's tokens but the last, which is the end token: open-unlearning leaves it out."""
    values = tokenwise(example, "answer", key)[:-1]
    if not values:
        raise DataError(f"{describe(example)}: the answer has no token beside its end")
    return values


def labelled(example: Example) -> str:
    """The text of the tokens that are scored."""
    text = example.get("labelled")
    if not isinstance(text, str):
        raise DataError(f"{describe(example)}: no labelled text")
    return text


def less_retrain(score: Scored, retrain: Sequence[Example] | None) -> Scored:
    """A score less that of retrain's example of the same set and index."""
    known = {(example["set"], example["index"]): example for example in retrain or []}

    def difference(example: Example) -> float:
        with naming_retrain():
            other = known.get((example["set"], example["index"]))
            if other is None:
                raise DataError(f"no {describe(example)}")
            reference = score(other)
        return score(example) - reference

    return difference


def gradient_norm(example: Example, target: str) -> float:
    value = raw_score(example, target).get("gradient_norm")
    if not isinstance(value, int | float):
        raise DataError(f"{describe(example)}: target {target!r} has no 'gradient_norm'")
    return value


@contextmanager
def naming_retrain() -> Iterator[None]:
    """Say of an error in examples that they are retrain's."""
    try:
        yield
    except DataError as error:
        raise DataError(f"retrain's evaluation: {error}") from None
