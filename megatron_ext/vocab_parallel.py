"""Functions of logits that are split over tensor-parallel ranks by vocabulary, without gathering them.

Shapes: ``logits`` ``[n, v / tp]``, this rank's columns, with -inf in columns that only pad the vocabulary; results
``[n]``, fp32, equal on every rank of ``group``.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import ProcessGroup


class _TargetLogProbs(torch.autograd.Function):
    """Forward: two all-reduces of ``[n]`` (maximum) and ``[2, n]`` (sums). Backward: none."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor, group: ProcessGroup) -> Tensor:
        split, width = group.size() > 1, logits.size(-1)
        values = logits.float()
        top = values.amax(dim=-1)
        if split:
            dist.all_reduce(top, op=dist.ReduceOp.MAX, group=group)
        values = values - top.unsqueeze(-1)
        local = targets - group.rank() * width
        mine = (local >= 0) & (local < width)
        index = local.clamp(0, width - 1).unsqueeze(-1)
        target = values.gather(-1, index).squeeze(-1).masked_fill(~mine, 0.0)
        softmax = values.exp_()
        sums = torch.stack([softmax.sum(dim=-1), target])
        if split:
            dist.all_reduce(sums, group=group)
        softmax.div_(sums[0].unsqueeze(-1))
        ctx.save_for_backward(softmax, index, mine)
        ctx.dtype = logits.dtype
        return sums[1] - sums[0].log()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        softmax, index, mine = ctx.saved_tensors
        grad_logits = softmax.mul_(-grad.unsqueeze(-1))  # in place: backward runs once
        grad_logits.scatter_add_(-1, index, (grad * mine).unsqueeze(-1))
        return grad_logits.to(ctx.dtype), None, None


def target_log_probs(logits: Tensor, targets: Tensor, group: ProcessGroup) -> Tensor:
    """``log softmax(logits)[i, targets[i]]`` over the whole vocabulary, differentiable in ``logits``.

    ``targets``: int64 ``[n]``, vocabulary ids. Computed in fp32 whatever the dtype of ``logits``.
    """
    return _TargetLogProbs.apply(logits, targets, group)  # type: ignore[no-any-return]
