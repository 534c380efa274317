"""A BLUR-NPO step against the same step with the weighted sum: what the projection costs.

One trainer takes both in turns, on the same batches, at a learning rate of zero: the optimizer does its work,
and the weights stay. The weighted sum accumulates both gradients in one buffer; BLUR keeps them apart, takes their
inner products and combines them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from megatron_ext.distributed import process_groups
from megatron_ext.losses.nll import NLL
from megatron_ext.losses.npo import NPO
from megatron_ext.updates import Rule
from megatron_ext.updates.blur import Blur
from megatron_ext.updates.weighted_sum import WeightedSum
from perf.common import MICRO_BATCH, OPTIMIZER, Batches, Losses, Options, build, in_turns, result, run

BOUND = 1.05


def measure(given: Options) -> list[dict[str, Any]]:
    with process_groups.start(given.runtime) as ranks:
        from megatron_ext.training.trainer import Trainer

        model = build(given.model, ranks)
        batches = Batches(given).with_references(given, model, ranks)
        trainer = Trainer(model, ranks, OPTIMIZER, MICRO_BATCH)

        def variant(rule: Rule) -> Callable[[int], Losses]:
            def step(i: int) -> Losses:
                taken = trainer.step(batches.terms(i, NPO(), NLL()), rule, rate=0.0)
                return list(taken.losses.values())

            return step

        seconds = in_turns({"blur": variant(Blur()), "weighted sum": variant(WeightedSum())}, given)
    return [result("blur", given, seconds, BOUND)]


if __name__ == "__main__":
    run(measure, __doc__)
