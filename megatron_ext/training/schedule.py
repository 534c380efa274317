"""The learning rate of an optimizer step, as a function of the step alone: nothing to save or restore."""

from __future__ import annotations

import math

from megatron_ext.config import Optimizer


def learning_rate(spec: Optimizer, step: int, total: int, warmup: int) -> float:
    """The learning rate of one step, that of ``transformers.get_scheduler``: linear warm-up from 0, then decay.

    The first step of a warm-up has rate 0. Without a warm-up the first step has the peak. The decay would reach its end
    one step after the last, so that a run of one step moves.

    Args:
        spec: The peak, and the kind of decay, which goes towards ``final_fraction`` of the peak.
        step: The step, from 0.
        total: Steps of the run.
        warmup: Steps of the warm-up.

    Returns:
        The rate.
    """
    if step < warmup:
        return spec.learning_rate * step / warmup
    done = (step - warmup) / max(1, total - warmup)
    floor = spec.schedule.final_fraction
    share = {
        "constant": 1.0,
        "linear": floor + (1 - floor) * (1 - done),
        "cosine": floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * done)),
    }[spec.schedule.kind]
    return spec.learning_rate * share
