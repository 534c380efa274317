"""An NPO step on packed rows against the same step on padded ones: what padding costs.

One trainer takes both in turns, on the same batches, at a learning rate of zero. Rows of a micro-batch are of similar
length in both; packed, linear layers see no padding, and attention takes rows of one length at a time.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from megatron_ext.distributed import process_groups
from megatron_ext.losses.nll import NLL
from megatron_ext.losses.npo import NPO
from megatron_ext.updates.weighted_sum import WeightedSum
from perf.common import MICRO_BATCH, OPTIMIZER, Batches, Losses, Options, build, in_turns, result, run

BOUND = 1.0


def measure(given: Options) -> list[dict[str, Any]]:
    with process_groups.start(given.runtime) as ranks:
        from megatron_ext.training.trainer import Trainer

        model = build(given.model, ranks)
        batches = Batches(given).with_references(given, model, ranks)
        trainer = Trainer(model, ranks, OPTIMIZER, MICRO_BATCH)

        def variant(packed: bool) -> Callable[[int], Losses]:
            def step(i: int) -> Losses:
                trainer.accumulator.packed = packed
                taken = trainer.step(batches.terms(i, NPO(), NLL()), WeightedSum(), rate=0.0)
                return list(taken.losses.values())

            return step

        seconds = in_turns({"packed": variant(True), "padded": variant(False)}, given)
    return [result("packed", given, seconds, BOUND)]


if __name__ == "__main__":
    run(measure, __doc__)
