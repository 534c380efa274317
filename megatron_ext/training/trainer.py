"""A model, its optimizer, and one step after another along the directions that an update rule chooses."""

from __future__ import annotations

import math
import resource
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from megatron_ext.config import Optimizer
from megatron_ext.config.lean_memory import MemorySettings
from megatron_ext.distributed.process_groups import Ranks
from megatron_ext.model.build import LanguageModel
from megatron_ext.training import optimizer as optimizers
from megatron_ext.training.accumulator import GradientAccumulator, NonFinite
from megatron_ext.training.loss_terms import LossTerm
from megatron_ext.training.reference_model import ReferenceModel
from megatron_ext.training.step import Step
from megatron_ext.updates import Rule, State, StepPosition, Vector


class Trainer:
    """A model wrapped in Megatron's DistributedDataParallel and optimizer, stepping along chosen directions.

    Attributes:
        model: This rank's stage of the model.
        optimizer: Megatron's optimizer.
        memory_settings: What gradients and optimizer are kept in.
        accumulator: Takes gradients and losses.
        stop_requested: Whether this rank was asked to stop; every rank learns of it in the step's all-reduce.
    """

    def __init__(
        self,
        model: LanguageModel,
        ranks: Ranks,
        spec: Optimizer,
        micro_batch: int,
        reference_model: ReferenceModel | None = None,
        micro_batch_tokens: int | None = None,
        memory: MemorySettings = MemorySettings(),  # noqa: B008
        packed: bool = False,
    ) -> None:
        """Wrap ``model``. Collective over all ranks.

        Args:
            model: This rank's stage, built with ``training``.
            ranks: Where this process stands.
            spec: The optimizer's settings.
            micro_batch: Sequences of one forward pass on one data-parallel rank.
            reference_model: The model before unlearning, for losses that need it.
            micro_batch_tokens: Bound on a forward pass's tokens, padding included.
            memory: What gradients and optimizer are kept in.
            packed: Whether a forward pass's sequences follow one another, without padding.
        """
        self.model, self.ranks, self.spec, self.memory_settings = model, ranks, spec, memory
        ddp = optimizers.distributed(model, ranks, memory)
        self.optimizer = optimizers.build(ddp, ranks, spec, memory)
        self.accumulator = GradientAccumulator(
            model, ddp, self.optimizer, ranks, micro_batch, reference_model, micro_batch_tokens, packed
        )
        self.stop_requested = False

    def step(
        self,
        terms: Sequence[LossTerm],
        rule: Rule,
        rate: float,
        separate: bool = False,
        state: State | None = None,
        position: StepPosition = StepPosition(),  # noqa: B008
        whole_retain: Callable[[], LossTerm] | None = None,
        kept: dict[str, Vector] | None = None,
    ) -> Step:
        """Take one optimizer step along ``rule``'s direction. Collective over all ranks.

        Args:
            terms: The forget term, then the retain term if there is one.
            rule: Chooses the direction.
            rate: The learning rate.
            separate: Keep each term's gradient apart even for a rule that needs only their sum.
            state: The rule's own numbers, changed in place.
            position: Where in the run the step stands.
            whole_retain: Makes the retain term over the whole retain set.
            kept: The vectors that the rule keeps, changed in place.

        Returns:
            The step, with its results.

        Raises:
            NonFinite: A loss, gradient or direction is not finite; on every rank, before the weights change.
            TypeError: The rule left no direction, or a loss is not one number.
        """
        step = Step(
            self.accumulator,
            terms,
            rate,
            separate=separate,
            state=state,
            kept=kept,
            position=position,
            whole_retain=whole_retain,
            clip_norm=self.spec.clip_norm,
            stop_requested=lambda: self.stop_requested,
        )
        rule.update(step)
        if step.update_norm is None:
            raise TypeError(
                f"rule {rule.name!r}: its 'update' left no direction in the step; it ends in one of 'descend', "
                "'descend_tensors' and 'descend_along'"
            )
        if not math.isfinite(step.update_norm):
            raise NonFinite(f"the direction of rule {rule.name!r} is not finite (norm {step.update_norm})")
        for group in self.optimizer.param_groups:
            group["lr"] = step.rate
            group["weight_decay"] = self.spec.weight_decay * group["wd_mult"]
        optimizers.step(self.optimizer, self.memory_settings)
        rule.after(step)
        return step

    def refuse_broken_weights(self) -> None:
        """Check the weights, which the last step left unchecked. One all-reduce.

        Raises:
            NonFinite: Some parameter is not finite; on every rank.
        """
        bad = torch.stack([~p.detach().isfinite().all() for p in self.model.parameters()]).any().long()
        if self.ranks.world_size > 1:
            torch.distributed.all_reduce(bad)
        if bad:
            raise NonFinite("the weights are not finite after this step; they were not written")

    def checksum(self) -> Tensor:
        """int64 ``[p]``: a number of each parameter's bits, to see whether the weights changed."""
        view = {torch.float32: torch.int32, torch.bfloat16: torch.int16}[self.ranks.dtype]
        return torch.stack([p.detach().view(view).sum(dtype=torch.int64) for p in self.model.parameters()])

    def changed_since(self, before: Tensor) -> bool:
        """Whether any parameter on any rank has other bits than those of the checksum ``before``. One all-reduce."""
        changed = (self.checksum() != before).any().long()
        if self.ranks.world_size > 1:
            torch.distributed.all_reduce(changed)
        return bool(changed)

    def peak_memory_bytes(self) -> int:
        """Most memory this rank has held: in tensors on its GPU, or resident memory of the process on CPU."""
        if not self.ranks.on_cpu:
            return torch.cuda.max_memory_allocated(self.ranks.device)
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

    def memory(self) -> dict[str, int]:
        """The step log's entries on memory: on a GPU also what torch's allocator has taken for those tensors, which is
        more where blocks of many sizes leave gaps."""
        entries = {"peak_memory_bytes": self.peak_memory_bytes()}
        if not self.ranks.on_cpu:
            entries["peak_reserved_bytes"] = torch.cuda.max_memory_reserved(self.ranks.device)
        return entries
