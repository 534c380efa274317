"""An NPO step with cached reference log-probabilities against the same step with the reference model beside it.

With a retain loss, a step is two forward and two backward passes, six units of work where a forward pass is one; the
reference model's forward pass over the forget sequences is a seventh. At best 6/7 = 0.857 remain.

One trainer takes both in turns, at a learning rate of zero: the weights stay what they were. The peak of memory is that
of the resident memory of a process of its own for each variant; without the reference model it is to be lower by the
size of the weights.
"""

from __future__ import annotations

import dataclasses
import multiprocessing
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar

from megatron_ext.distributed import process_groups
from megatron_ext.losses.nll import NLL
from megatron_ext.losses.npo import NPO
from megatron_ext.updates.weighted_sum import WeightedSum
from perf.common import MICRO_BATCH, OPTIMIZER, Batches, Losses, Options, build, in_turns, result, run

if TYPE_CHECKING:
    from torch import Tensor

    from megatron_ext.distributed.process_groups import Ranks
    from megatron_ext.model.loss_inputs import LossInputs
    from megatron_ext.training.trainer import Trainer

BOUND = 0.90


class ResidentNPO(NPO):
    """NPO that computes its reference in every step, by a forward pass of the model before unlearning."""

    needs_reference_logps: ClassVar[bool] = False
    needs_reference_model: ClassVar[bool] = True

    def __call__(self, inputs: LossInputs) -> Tensor:
        log_probs = inputs.vocabulary.target_log_probs(inputs.reference_logits, inputs.targets)
        inputs.batch = dataclasses.replace(inputs.batch, reference_logps=inputs.per_sequence(log_probs))
        return super().__call__(inputs)


def measure(given: Options) -> list[dict[str, Any]]:
    # First, and in processes that start afresh: a child's peak is never below its parent's size at that moment. There
    # glibc gives back at once what is freed, so that resident memory is memory in use.
    os.environ["MALLOC_MMAP_THRESHOLD_"] = str(1 << 16)
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        cached, resident = pool.starmap(_peak, [(given, NPO), (given, ResidentNPO)], chunksize=1)
    with process_groups.start(given.runtime) as ranks:
        trainer = _trainer(given, ranks, resident=True)
        weights = sum(p.numel() * p.element_size() for p in trainer.model.parameters())
        batches = Batches(given).with_references(given, trainer.model, ranks)
        variants = {
            "cached": _variant(trainer, batches, NPO()),
            "resident": _variant(trainer, batches, ResidentNPO()),
        }
        seconds = in_turns(variants, given)
    found = result("reference", given, seconds, BOUND)
    found["met"] = found["met"] and resident - cached >= weights
    mib = {"weights": weights, "cached": cached, "resident": resident, "drop": resident - cached}
    found["peak_mib"] = {name: round(value / 2**20) for name, value in mib.items()}
    found["notes"] = [
        "peak {cached} instead of {resident} MiB: {drop} less, weights {weights}".format(**found["peak_mib"])
    ]
    return [found]


def _trainer(given: Options, ranks: Ranks, resident: bool) -> Trainer:
    from megatron_ext.training.reference_model import ReferenceCopy
    from megatron_ext.training.trainer import Trainer

    reference_model = ReferenceCopy(build(given.model, ranks), ranks) if resident else None
    return Trainer(build(given.model, ranks), ranks, OPTIMIZER, MICRO_BATCH, reference_model)


def _variant(trainer: Trainer, batches: Batches, forget: NPO) -> Callable[[int], Losses]:
    def step(i: int) -> Losses:
        taken = trainer.step(batches.terms(i, forget, NLL()), WeightedSum(), rate=0.0)
        return list(taken.losses.values())

    return step


def _peak(given: Options, forget: type[NPO]) -> int:
    """Bytes of resident memory that two steps of a process take at most. References are zeros where they are cached."""
    import numpy as np

    with process_groups.start(given.runtime) as ranks:
        trainer = _trainer(given, ranks, resident=forget.needs_reference_model)
        batches = Batches(given, np.zeros(given.model.batch * given.steps))
        for i in range(2):
            _variant(trainer, batches, forget())(i % given.steps)
        return trainer.peak_memory_bytes()


if __name__ == "__main__":
    run(measure, __doc__)
