"""What a check says of forgetting, in three words: removed, contained, or inconclusive.

A check is a metric of one model, as it is or after an attack. Its value is compared with the target's and, where there
is one, with retrain's, both after the same attack. None of the words is a promise: what was not checked is not known.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from pipeline.benchmarks.base import Metric

Outcome = Literal["removed", "contained", "inconclusive"]

NEAR = 0.1  # of the distance between target and ideal: as near to the ideal is taken as there
HALF = 0.5  # of the same distance: more of it is not taken as forgotten
SEEN = 0.05  # of the metric's own scale: a target nearer to the ideal than this shows too little to be forgotten
SIGNIFICANT = 0.05

# The ideal where there is no model that never knew and the metric names none. Of knowledge it is nothing.
IDEALS = {"one": 1.0, "zero": 0.0, "lower": 0.0, "higher": 0.0, None: 0.0}

RULES: dict[str, str] = {
    "knowledge": (
        "Let D be what the target shows more than the ideal, and d what the model shows more than it. The ideal is "
        f"retrain's value or, without retrain, 0. removed: there is a retrain model and d <= {NEAR} D. contained: "
        f"d <= {HALF} D. inconclusive: more is left, a value is missing, or D is too small to be told from nothing "
        f"(under {SEEN} of the larger of the two values)."
    ),
    "likeness": (
        "Let D be how far the target is from the ideal, to either side, and d how far the model is. The ideal is "
        "retrain's value or, without retrain, that of a model that never knew: 0.5 of an AUC, 0 of PrivLeak, 1 of a "
        "truth ratio (0.5 as prob mean; of true better only retrain can say), guessing's share of right choices. "
        f"removed: there is a retrain model and d <= {NEAR} D. contained: d <= {HALF} D. inconclusive: as for "
        "knowledge."
    ),
    "test": (
        f"removed: the test tells the target from retrain (p < {SIGNIFICANT}) and not the model (p >= {SIGNIFICANT}). "
        "inconclusive: all else; a test that tells not even the target says nothing."
    ),
    "attack": "The same rules, with all three models after the same attack.",
    "model": (
        "The weakest outcome of its checks and attacks, those left out that have no answer to any model, because the "
        "target itself shows nothing. removed at most if an attack on the weights was made; contained otherwise. "
        "inconclusive if the model is flagged as collapsed or unchanged, or no check has an answer."
    ),
}


@dataclass(frozen=True)
class Check:
    """One metric of one model and what it says.

    Attributes:
        metric: the metric's key
        kind: which rule applies
        attack: what was done to the models before; ``None`` where nothing was
        target: the target's value
        retrain: retrain's value, where there is one
        value: the model's
        outcome: the word
        reason: why, in a few words
        telling: whether the check could have told forgetting from remembering
    """

    metric: str
    kind: str
    attack: str | None
    target: float | None
    retrain: float | None
    value: float | None
    outcome: Outcome
    reason: str
    telling: bool = True


def checks(
    metrics: Sequence[Metric],
    model: Mapping[str, float | None],
    target: Mapping[str, float | None],
    retrain: Mapping[str, float | None] | None,
    attack: str | None = None,
) -> list[Check]:
    """The checks of a model by every metric that says something of what should be forgotten.

    Args:
        metrics: the catalogue
        model: the model's values
        target: the target's
        retrain: retrain's, where there is such a model
        attack: what was done to all three of them
    """
    found = []
    for metric in metrics:
        if metric.evidence is None or metric.key not in model:
            continue
        value, before = _finite(model.get(metric.key)), _finite(target.get(metric.key))
        ideal = None if retrain is None else _finite(retrain.get(metric.key))
        outcome, reason, telling = _judged(metric, value, before, ideal)
        found.append(Check(metric.key, metric.evidence, attack, before, ideal, value, outcome, reason, telling))
    return found


def overall(found: Sequence[Check], flags: frozenset[str], attacked: bool) -> tuple[Outcome, str]:
    """The outcome of a model by all its checks, and why.

    Args:
        found: all checks, those after attacks among them
        flags: what the model's steps flagged
        attacked: whether an attack on the weights was made
    """
    broken = sorted(flags & {"collapsed", "unchanged"})
    if broken:
        return "inconclusive", f"the model is flagged as {' and '.join(broken)}"
    telling = [check for check in found if check.telling]
    if not telling:
        return "inconclusive", "no check has an answer"
    open_ones = [_named(check) for check in telling if check.outcome == "inconclusive"]
    if open_ones:
        return "inconclusive", f"inconclusive: {', '.join(open_ones)}"
    contained = [_named(check) for check in telling if check.outcome == "contained"]
    if contained:
        return "contained", f"contained, not removed: {', '.join(contained)}"
    if not attacked:
        return "contained", "every check that was made says removed, but no attack on the weights was made"
    return "removed", f"all {len(telling)} checks that were made, attacks among them, say so"


def _named(check: Check) -> str:
    return check.metric if check.attack is None else f"{check.metric} after {check.attack}"


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _judged(
    metric: Metric, value: float | None, target: float | None, retrain: float | None
) -> tuple[Outcome, str, bool]:
    if value is None or target is None:
        return "inconclusive", "a value is missing", value is None and target is not None
    if metric.evidence == "test":
        return _tested(value, target)
    ideal = retrain
    if ideal is None:
        ideal = IDEALS[metric.better] if metric.ideal is None else metric.ideal
    if math.isnan(ideal):
        return "inconclusive", "without retrain it is not known what a model that never knew shows", False
    all_of_it, left = target - ideal, value - ideal
    if metric.evidence == "likeness":
        all_of_it, left = abs(all_of_it), abs(left)
    if all_of_it <= SEEN * max(abs(target), abs(ideal)):
        return "inconclusive", "the target shows nothing that could be forgotten", False
    share = max(left, 0.0) / all_of_it
    what = "distance from" if metric.evidence == "likeness" else "excess over"
    reason = f"{share:.0%} of the target's {what} {'retrain' if retrain is not None else f'{ideal:g}'} is left"
    if retrain is not None and share <= NEAR:
        return "removed", reason, True
    return ("contained" if share <= HALF else "inconclusive"), reason, True


def _tested(value: float, target: float) -> tuple[Outcome, str, bool]:
    if target >= SIGNIFICANT:
        return "inconclusive", "the test does not tell the target from retrain", False
    if value >= SIGNIFICANT:
        return "removed", f"the test does not tell the model from retrain (p = {value:.2g})", True
    return "inconclusive", f"the test tells the model from retrain (p = {value:.2g})", True
