"""Functions of logits that are split over tensor-parallel ranks by vocabulary, without gathering them.

Shapes: ``logits`` ``[n, v / tp]``, this rank's columns, with -inf in columns that only pad the vocabulary; results
``[n]``, equal on every rank of the group, fp32 whatever the dtype of ``logits`` (fp64 for fp64). Collectives are over
the group, in the forward pass only; a group of one rank makes none.

Gradients: every rank computes the same loss of the results, and gets the gradient of its own columns. A function keeps
one ``[n, v / tp]`` tensor for it, in the dtype of ``logits``; padding gets zero.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import ProcessGroup

# What a function gives: its value in each row and, where asked for, its derivative by this rank's logits of that row.
Known = tuple[Tensor, Tensor | None]


class _Rowwise(torch.autograd.Function):
    """A function of each row whose derivative is known in the forward pass."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, function: Callable[[Tensor, bool], Known]) -> Tensor:
        values, derivative = function(logits, ctx.needs_input_grad[0])
        if derivative is not None:
            ctx.save_for_backward(derivative.to(logits.dtype))
        return values

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (derivative,) = ctx.saved_tensors
        return torch.mul(derivative, grad.unsqueeze(-1), out=torch.empty_like(derivative)), None


class _Sum(torch.autograd.Function):
    """Sum over the ranks of a group, each of which keeps its own summand's gradient."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, shards: VocabularyShards) -> Tensor:
        return shards.reduce([values], dist.ReduceOp.SUM)[0]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad, None


class VocabularyShards:
    """The functions, for a tensor-parallel ``group`` and a vocabulary of ``size`` real tokens."""

    def __init__(self, group: ProcessGroup, size: int) -> None:
        self.group, self.size = group, size

    def target_log_probs(self, logits: Tensor, targets: Tensor) -> Tensor:
        """``log softmax(logits)[i, targets[i]]``. ``targets``: int64 ``[n]``, vocabulary ids.

        Two all-reduces, of ``[n]`` and ``[2, n]``.
        """

        def function(logits: Tensor, derive: bool) -> Known:
            index, mine = self._places(logits, targets)
            shifted = torch.sub(logits, self._top(logits)[0].unsqueeze(-1))
            target = shifted.gather(-1, index).squeeze(-1).masked_fill(~mine, 0.0)
            weights = shifted.exp_()
            total, target = self.reduce([weights.sum(-1), target], dist.ReduceOp.SUM)
            if derive:
                weights.div_(-total.unsqueeze(-1)).scatter_add_(-1, index, mine.to(weights.dtype).unsqueeze(-1))
            return target - total.log(), weights if derive else None

        return _Rowwise.apply(logits, function)  # type: ignore[no-any-return]

    def log_sum_exp(self, logits: Tensor) -> Tensor:
        """``log sum_v exp z_v``. Two all-reduces of ``[n]``."""

        def function(logits: Tensor, derive: bool) -> Known:
            (top,) = self._top(logits)
            weights = torch.sub(logits, top.unsqueeze(-1)).exp_()
            (total,) = self.reduce([weights.sum(-1)], dist.ReduceOp.SUM)
            return top + total.log(), weights.div_(total.unsqueeze(-1)) if derive else None

        return _Rowwise.apply(logits, function)  # type: ignore[no-any-return]

    def entropy(self, logits: Tensor) -> Tensor:
        """``-sum_v p_v log p_v`` of ``p = softmax(logits)``, in nats. Two all-reduces, of ``[n]`` and ``[2, n]``."""

        def function(logits: Tensor, derive: bool) -> Known:
            shifted = _below(logits, self._top(logits)[0])
            weights = shifted.exp()
            total, moment = self.reduce([weights.sum(-1), (weights * shifted).sum(-1)], dist.ReduceOp.SUM)
            mean = moment / total
            if derive:  # dH / dz_v = -p_v (log p_v + H)
                shifted.sub_(mean.unsqueeze(-1)).mul_(weights).div_(-total.unsqueeze(-1))
            return total.log() - mean, shifted if derive else None

        return _Rowwise.apply(logits, function)  # type: ignore[no-any-return]

    def log_prob_moments(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and variance of ``log p_v`` over ``v ~ p = softmax(logits)``; the mean is minus the entropy. Without
        gradient. Three all-reduces, of ``[n]``, ``[2, n]`` and ``[n]``."""
        shifted = _below(logits.detach(), self._top(logits)[0])
        weights = shifted.exp()
        total, moment = self.reduce([weights.sum(-1), (weights * shifted).sum(-1)], dist.ReduceOp.SUM)
        mean = moment / total  # of the shifted ones; from here, because squares of what is not centred cancel
        # Where the weight is 0 the distance may be the lowest number there is, whose square is not finite.
        spread = shifted.sub_(mean.unsqueeze(-1)).mul_(weights.sqrt()).square_().sum(-1)
        (spread,) = self.reduce([spread], dist.ReduceOp.SUM)
        return mean - total.log(), spread / total

    def argmax(self, logits: Tensor) -> Tensor:
        """The id of each row's largest logit, the lowest of several: int64 ``[n]``. Without gradient.

        One all-gather of fp64 ``[2, n]``, exact for logits of any floating-point type up to fp64 and for ids.
        """
        local = logits.argmax(dim=-1)
        if self.group.size() == 1:
            return local
        top = logits.gather(-1, local.unsqueeze(-1)).squeeze(-1)
        best = torch.stack([top.double(), (local + self.group.rank() * logits.size(-1)).double()])
        every = best.new_empty(self.group.size(), *best.shape)
        dist.all_gather(list(every.unbind()), best, group=self.group)
        # The first shard that attains the maximum has the lowest id.
        shard = every[:, 0].argmax(dim=0)
        return every[:, 1].gather(0, shard.unsqueeze(0)).squeeze(0).long()

    def maximum(self, logits: Tensor) -> Tensor:
        """``max_v z_v``; tied maxima share the gradient equally, wherever they are.

        An all-reduce of ``[n]``, and another where a gradient is needed.
        """
        return self._peak(logits, less_mean=False)

    def margin(self, logits: Tensor) -> Tensor:
        """``max_v z_v - mean_v z_v``, with the gradients of ``maximum`` and ``mean``. Two all-reduces, of ``[n]`` and
        ``[2, n]``."""
        return self._peak(logits, less_mean=True)

    def mean(self, logits: Tensor) -> Tensor:
        """``mean_v z_v`` over the real tokens; keeps nothing for its gradient. One all-reduce of ``[n]``."""
        return self.sum(self.real(logits)) / self.size

    def kl(self, reference: Tensor, logits: Tensor) -> Tensor:
        """``KL(softmax(reference) || softmax(logits))``, in nats; no gradient to ``reference``. Two all-reduces, of
        ``[2, n]`` and ``[3, n]``."""
        return self._cross_entropy(reference, logits, relative=True)

    def soft_cross_entropy(self, teacher: Tensor, logits: Tensor) -> Tensor:
        """``-sum_v softmax(teacher)_v log softmax(logits)_v``, in nats; no gradient to ``teacher``, where -inf may be.
        Two all-reduces, of ``[2, n]`` and ``[3, n]``."""
        return self._cross_entropy(teacher, logits, relative=False)

    def shifted_at(self, logits: Tensor, targets: Tensor, value: float) -> Tensor:
        """A copy of ``logits`` in the dtype of results, with ``value``, which may be -inf, added in each row at the
        token ``targets`` (int64 ``[n]``), on the rank that has it. No collective."""
        index, mine = self._places(logits, targets)
        copy = logits.to(_wide(logits), copy=True)
        return copy.scatter_add_(-1, index, torch.where(mine, value, 0.0).to(copy.dtype).unsqueeze(-1))

    def real(self, values: Tensor) -> Tensor:
        """A view of the columns of ``values`` ``[n, v / tp]`` that are not padding. No collective."""
        width = values.size(-1)
        return values[:, : max(0, min(width, self.size - self.group.rank() * width))]

    def sum(self, values: Tensor) -> Tensor:
        """Sums over the columns that all ranks have together. ``values``: ``[n, any]``, such as a function of every
        entry of ``real(logits)``. One all-reduce of ``[n]``."""
        return _Sum.apply(values.sum(-1, dtype=_wide(values)), self)  # type: ignore[no-any-return]

    def reduce(self, rows: list[Tensor], op: Any) -> Tensor:
        """``rows``, each ``[n]``, stacked and reduced over the ranks: one all-reduce. Without gradient."""
        stacked = torch.stack(rows)
        if self.group.size() > 1:
            dist.all_reduce(stacked, op=op, group=self.group)
        return stacked

    def _top(self, *logits: Tensor) -> Tensor:
        return self.reduce([t.amax(-1).to(_wide(t)) for t in logits], dist.ReduceOp.MAX)

    def _places(self, logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """The column of each target, int64 ``[n, 1]``, and whether this rank has it, bool ``[n]``."""
        width = logits.size(-1)
        local = targets - self.group.rank() * width
        return local.clamp(0, width - 1).unsqueeze(-1), (local >= 0) & (local < width)

    def _peak(self, logits: Tensor, less_mean: bool) -> Tensor:
        def function(logits: Tensor, derive: bool) -> Known:
            (top,) = self._top(logits)
            tied = (logits == top.unsqueeze(-1)).to(top.dtype) if derive else None
            rows = [] if tied is None else [tied.sum(-1)]
            rows += [self.real(logits).sum(-1, dtype=top.dtype)] if less_mean else []
            sums = self.reduce(rows, dist.ReduceOp.SUM) if rows else top
            if tied is not None:
                tied.div_(sums[0].unsqueeze(-1))
                if less_mean:
                    self.real(tied).sub_(1 / self.size)
            return (top - sums[-1] / self.size if less_mean else top), tied

        return _Rowwise.apply(logits, function)  # type: ignore[no-any-return]

    def _cross_entropy(self, teacher: Tensor, logits: Tensor, relative: bool) -> Tensor:
        """``relative``: less the teacher's own entropy, taken off term by term, so that equal ones give exactly 0."""

        def function(logits: Tensor, derive: bool) -> Known:
            tops = self._top(teacher, logits)
            given, own = _below(teacher, tops[0]), _below(logits, tops[1])
            gap = given - own if relative else -own
            weights = given.exp_()
            cross = gap.mul_(weights).sum(-1)
            del gap
            mine = own.exp_()
            total, own_total, cross = self.reduce([weights.sum(-1), mine.sum(-1), cross], dist.ReduceOp.SUM)
            values = cross / total + own_total.log() - (total.log() if relative else 0.0)
            if derive:
                mine.div_(own_total.unsqueeze(-1)).sub_(weights.div_(total.unsqueeze(-1)))
            return values, mine if derive else None

        return _Rowwise.apply(logits, function)  # type: ignore[no-any-return]


def _wide(values: Tensor) -> torch.dtype:
    return torch.promote_types(values.dtype, torch.float32)


def _below(logits: Tensor, top: Tensor) -> Tensor:
    """``logits - top``, at most 0, with the lowest finite number for -inf: its exponential is 0 too, and so is the
    product of both, where -inf would give NaN."""
    return torch.sub(logits, top.unsqueeze(-1)).clamp_(min=torch.finfo(top.dtype).min)
