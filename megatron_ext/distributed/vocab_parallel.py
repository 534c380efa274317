"""Functions of logits that are split over tensor-parallel ranks by vocabulary, without gathering them.

``logits_NV`` are this rank's columns, with -inf in columns that only pad the vocabulary. Results are ``[N]``, equal on
every rank of the group, fp32 whatever the dtype of the logits (fp64 for fp64). Collectives are over the group, in the
forward pass only; a group of one rank makes none. (``megatron_ext`` has the letters of shapes.)

Gradients: every rank computes the same loss of the results, and gets the gradient of its own columns. A function keeps
one ``[N, V]`` tensor for it, in the dtype of the logits; padding gets zero.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import ProcessGroup

from megatron_ext.distributed.argmax import argmax


@dataclass(frozen=True)
class _Known:
    """What a function of each row gives.

    Attributes:
        values: ``[N]``.
        derivative: ``[N, V]``, the derivative of each value by this rank's logits of its row; None where no gradient is
            asked for.
    """

    values: Tensor
    derivative: Tensor | None


class _Rowwise(torch.autograd.Function):
    """A function of each row whose derivative is known in the forward pass."""

    @staticmethod
    def forward(ctx: Any, logits_NV: Tensor, function: Callable[[Tensor, bool], _Known]) -> Tensor:
        known = function(logits_NV, ctx.needs_input_grad[0])
        if known.derivative is not None:
            ctx.save_for_backward(known.derivative.to(logits_NV.dtype))
        return known.values

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_N: Tensor) -> tuple[Tensor, None]:
        (derivative_NV,) = ctx.saved_tensors
        return torch.mul(derivative_NV, grad_N.unsqueeze(-1), out=torch.empty_like(derivative_NV)), None


class _Sum(torch.autograd.Function):
    """Sum over the ranks of a group, each of which keeps its own summand's gradient."""

    @staticmethod
    def forward(ctx: Any, values_N: Tensor, shards: VocabularyShards) -> Tensor:
        return shards.reduce([values_N], dist.ReduceOp.SUM)[0]

    @staticmethod
    def backward(ctx: Any, grad_N: Tensor) -> tuple[Tensor, None]:
        return grad_N, None


class VocabularyShards:
    """The functions, for a tensor-parallel ``group`` and a vocabulary of ``size`` real tokens."""

    def __init__(self, group: ProcessGroup, size: int) -> None:
        self.group, self.size = group, size

    def target_log_probs(self, logits_NV: Tensor, targets_N: Tensor) -> Tensor:
        """``log softmax(logits)[i, targets[i]]``. Two all-reduces, of ``[N]`` and ``[2, N]``.

        Args:
            logits_NV: Logits.
            targets_N: int64, vocabulary ids.

        Returns:
            ``[N]``.
        """

        def function(logits_NV: Tensor, derive: bool) -> _Known:
            column_N1, own_N = self._columns(logits_NV, targets_N)
            shifted_NV = torch.sub(logits_NV, self._top(logits_NV)[0].unsqueeze(-1))
            target_N = shifted_NV.gather(-1, column_N1).squeeze(-1).masked_fill(~own_N, 0.0)
            weights_NV = shifted_NV.exp_()
            total_N, target_N = self.reduce([weights_NV.sum(-1), target_N], dist.ReduceOp.SUM)
            if derive:
                own_N1 = own_N.to(weights_NV.dtype).unsqueeze(-1)
                weights_NV.div_(-total_N.unsqueeze(-1)).scatter_add_(-1, column_N1, own_N1)
            return _Known(target_N - total_N.log(), weights_NV if derive else None)

        return _rowwise(logits_NV, function)

    def log_prob_moments(self, logits_NV: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and variance of ``log p_v`` over ``v ~ p = softmax(logits)``; the mean is minus the entropy.

        Without gradient. Three all-reduces, of ``[N]``, ``[2, N]`` and ``[N]``.
        """
        shifted_NV = _below(logits_NV.detach(), self._top(logits_NV)[0])
        weights_NV = shifted_NV.exp()
        sums = [weights_NV.sum(-1), (weights_NV * shifted_NV).sum(-1)]
        total_N, moment_N = self.reduce(sums, dist.ReduceOp.SUM)
        mean_N = moment_N / total_N  # of the shifted ones; from here, because squares of what is not centred cancel
        # Where the weight is 0 the distance may be the lowest number there is, whose square is not finite.
        spread_N = shifted_NV.sub_(mean_N.unsqueeze(-1)).mul_(weights_NV.sqrt()).square_().sum(-1)
        (spread_N,) = self.reduce([spread_N], dist.ReduceOp.SUM)
        return mean_N - total_N.log(), spread_N / total_N

    def argmax(self, logits_NV: Tensor) -> Tensor:
        """The id of each row's largest logit, the lowest of several: int64 ``[N]``. Without gradient.

        One all-gather of fp64 ``[2, N]``, exact for logits of any floating-point type up to fp64 and for ids.
        """
        local_N = argmax(logits_NV)
        if self.group.size() == 1:
            return local_N
        top_N = logits_NV.gather(-1, local_N.unsqueeze(-1)).squeeze(-1)
        best_2N = torch.stack([top_N.double(), (local_N + self.group.rank() * logits_NV.size(-1)).double()])
        every = best_2N.new_empty(self.group.size(), *best_2N.shape)
        dist.all_gather(list(every.unbind()), best_2N, group=self.group)
        # The first shard that attains the maximum has the lowest id.
        shard_N = every[:, 0].argmax(dim=0)
        return every[:, 1].gather(0, shard_N.unsqueeze(0)).squeeze(0).long()

    def margin(self, logits_NV: Tensor) -> Tensor:
        """``max_v z_v - mean_v z_v`` over the real tokens. Two all-reduces, of ``[N]`` and ``[2, N]``.

        Tied maxima share the gradient equally, wherever they are.
        """

        def function(logits_NV: Tensor, derive: bool) -> _Known:
            (top_N,) = self._top(logits_NV)
            tied_NV = (logits_NV == top_N.unsqueeze(-1)).to(top_N.dtype) if derive else None
            ties = [] if tied_NV is None else [tied_NV.sum(-1)]
            sums = self.reduce([*ties, self.real(logits_NV).sum(-1, dtype=top_N.dtype)], dist.ReduceOp.SUM)
            if tied_NV is not None:
                tied_NV.div_(sums[0].unsqueeze(-1))
                self.real(tied_NV).sub_(1 / self.size)
            return _Known(top_N - sums[-1] / self.size, tied_NV)

        return _rowwise(logits_NV, function)

    def probability_margin(self, logits_NV: Tensor, targets_N: Tensor) -> Tensor:
        """``p_y - max_{v != y} p_v`` with ``p = softmax(logits)`` and ``y`` the target. Two all-reduces, of ``[2, N]``
        and ``[3, N]``.

        Tied maxima share the gradient equally, wherever they are.

        Args:
            logits_NV: Logits.
            targets_N: int64, vocabulary ids.

        Returns:
            ``[N]``.
        """

        def function(logits_NV: Tensor, derive: bool) -> _Known:
            column_N1, own_N = self._columns(logits_NV, targets_N)
            others_NV = self.shifted_at(logits_NV, targets_N, -math.inf)
            top_N, rival_N = self._top(logits_NV, others_NV)
            weights_NV = _below(logits_NV, top_N).exp_()
            tied_NV = others_NV.eq_(rival_N.unsqueeze(-1))
            target_N = weights_NV.gather(-1, column_N1).squeeze(-1).masked_fill(~own_N, 0.0)
            sums = [weights_NV.sum(-1), target_N, tied_NV.sum(-1)]
            total_N, target_N, ties_N = self.reduce(sums, dist.ReduceOp.SUM)
            target_N, rival_N = target_N / total_N, (rival_N - top_N).exp() / total_N
            if derive:
                weights_NV.mul_(((rival_N - target_N) / total_N).unsqueeze(-1))
                weights_NV.sub_(tied_NV.mul_((rival_N / ties_N).unsqueeze(-1)))
                weights_NV.scatter_add_(-1, column_N1, torch.where(own_N, target_N, 0.0).unsqueeze(-1))
            return _Known(target_N - rival_N, weights_NV if derive else None)

        return _rowwise(logits_NV, function)

    def kl_from_uniform(self, logits_NV: Tensor) -> Tensor:
        """``KL(uniform || softmax(logits))`` over the real tokens, in nats.

        Two all-reduces, of ``[N]`` and ``[2, N]``.
        """

        def function(logits_NV: Tensor, derive: bool) -> _Known:
            shifted_NV = _below(logits_NV, self._top(logits_NV)[0])
            summed_N = self.real(shifted_NV).sum(-1)
            weights_NV = shifted_NV.exp_()
            total_N, summed_N = self.reduce([weights_NV.sum(-1), summed_N], dist.ReduceOp.SUM)
            if derive:
                weights_NV.div_(total_N.unsqueeze(-1))
                self.real(weights_NV).sub_(1 / self.size)
            return _Known(total_N.log() - summed_N / self.size - math.log(self.size), weights_NV if derive else None)

        return _rowwise(logits_NV, function)

    def kl(self, reference_NV: Tensor, logits_NV: Tensor) -> Tensor:
        """``KL(softmax(reference) || softmax(logits))``, in nats; no gradient to ``reference_NV``.

        Two all-reduces, of ``[2, N]`` and ``[3, N]``.
        """
        return self._cross_entropy(reference_NV, logits_NV, relative=True)

    def soft_cross_entropy(self, teacher_NV: Tensor, logits_NV: Tensor) -> Tensor:
        """``-sum_v softmax(teacher)_v log softmax(logits)_v``, in nats.

        No gradient to ``teacher_NV``, which may hold -inf. Two all-reduces, of ``[2, N]`` and ``[3, N]``.
        """
        return self._cross_entropy(teacher_NV, logits_NV, relative=False)

    def shifted_at(self, logits_NV: Tensor, targets_N: Tensor, value: float) -> Tensor:
        """A copy of the logits with a number added in each row at one token. No collective.

        Args:
            logits_NV: Logits.
            targets_N: int64, the tokens; of each the rank that has its column adds the number.
            value: The number, which may be -inf.

        Returns:
            ``[N, V]`` in the dtype of results.
        """
        column_N1, own_N = self._columns(logits_NV, targets_N)
        copy_NV = logits_NV.to(_wide(logits_NV), copy=True)
        return copy_NV.scatter_add_(-1, column_N1, torch.where(own_N, value, 0.0).to(copy_NV.dtype).unsqueeze(-1))

    def real(self, values_NV: Tensor) -> Tensor:
        """A view of the columns that are not padding. No collective."""
        width = values_NV.size(-1)
        return values_NV[:, : max(0, min(width, self.size - self.group.rank() * width))]

    def sum(self, values: Tensor) -> Tensor:
        """Sums over the columns that all ranks have together. One all-reduce of ``[N]``.

        Args:
            values: ``[N, any]``, such as a function of every entry of ``real(logits)``.

        Returns:
            ``[N]``.
        """
        total_N: Tensor = _Sum.apply(values.sum(-1, dtype=_wide(values)), self)
        return total_N

    def reduce(self, rows: list[Tensor], op: Any) -> Tensor:
        """``rows``, each ``[N]``, stacked and reduced over the ranks: one all-reduce. Without gradient."""
        stacked = torch.stack(rows)
        if self.group.size() > 1:
            dist.all_reduce(stacked, op=op, group=self.group)
        return stacked

    def _top(self, *logits: Tensor) -> Tensor:
        """The largest logit of each row, of each of several ``[N, V]``: ``[several, N]``. One all-reduce."""
        return self.reduce([each_NV.amax(-1).to(_wide(each_NV)) for each_NV in logits], dist.ReduceOp.MAX)

    def _columns(self, logits_NV: Tensor, targets_N: Tensor) -> tuple[Tensor, Tensor]:
        """The column of each target, int64 ``[N, 1]``, and whether this rank has it, bool ``[N]``."""
        width = logits_NV.size(-1)
        local_N = targets_N - self.group.rank() * width
        return local_N.clamp(0, width - 1).unsqueeze(-1), (local_N >= 0) & (local_N < width)

    def _cross_entropy(self, teacher_NV: Tensor, logits_NV: Tensor, relative: bool) -> Tensor:
        """``relative``: less the teacher's own entropy, taken off term by term, so that equal ones give exactly 0."""

        def function(logits_NV: Tensor, derive: bool) -> _Known:
            tops_2N = self._top(teacher_NV, logits_NV)
            given_NV, own_NV = _below(teacher_NV, tops_2N[0]), _below(logits_NV, tops_2N[1])
            gap_NV = given_NV - own_NV if relative else -own_NV
            teacher_weights_NV = given_NV.exp_()
            cross_N = gap_NV.mul_(teacher_weights_NV).sum(-1)
            del gap_NV
            weights_NV = own_NV.exp_()
            sums = [teacher_weights_NV.sum(-1), weights_NV.sum(-1), cross_N]
            teacher_total_N, total_N, cross_N = self.reduce(sums, dist.ReduceOp.SUM)
            values_N = cross_N / teacher_total_N + total_N.log() - (teacher_total_N.log() if relative else 0.0)
            if derive:
                weights_NV.div_(total_N.unsqueeze(-1)).sub_(teacher_weights_NV.div_(teacher_total_N.unsqueeze(-1)))
            return _Known(values_N, weights_NV if derive else None)

        return _rowwise(logits_NV, function)


def _rowwise(logits_NV: Tensor, function: Callable[[Tensor, bool], _Known]) -> Tensor:
    values_N: Tensor = _Rowwise.apply(logits_NV, function)
    return values_N


def _wide(values: Tensor) -> torch.dtype:
    """The dtype of results: fp32, or fp64 for fp64."""
    return torch.promote_types(values.dtype, torch.float32)


def _below(logits_NV: Tensor, top_N: Tensor) -> Tensor:
    """``logits - top``, at most 0, with the lowest finite number for -inf: its exponential is 0 too, and so is the
    product of both, where -inf would give NaN."""
    return torch.sub(logits_NV, top_N.unsqueeze(-1)).clamp_(min=torch.finfo(top_N.dtype).min)
