"""Vocabulary-parallel functions against torch on the whole vocabulary: values, gradients, collectives, memory."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest

from tests.support.distributed import run_ranks

ROWS, VOCABULARY, PADDED = 7, 11, 16  # over four shards the last is padding only


def case() -> tuple[Any, Any, Any, Any]:
    """Logits and a teacher's, fp64 ``[ROWS, VOCABULARY]``, targets ``[ROWS]``, and weights of the rows."""
    import torch

    generator = torch.Generator().manual_seed(0)
    logits, teacher = torch.randn(2, ROWS, VOCABULARY, generator=generator, dtype=torch.float64) * 5
    logits[1, [1, 9]] = 20.0  # the maximum is tied on shards 0 and 1 of two, 0 and 2 of four
    logits[2, [0, 5, 6, 10]] = 20.0
    teacher[3, [2, 8]] = -math.inf
    targets = torch.tensor([0, 10, 5, 6, 3, 9, 0])
    return logits, teacher, targets, torch.randn(ROWS, generator=generator, dtype=torch.float64)


def softplus(values: Any) -> Any:
    import torch

    return torch.nn.functional.softplus(values)


def lowered(logits: Any, targets: Any, by: float) -> Any:
    import torch

    return logits - torch.zeros_like(logits).masked_fill(torch.nn.functional.one_hot(targets, VOCABULARY) > 0, by)


def soft(teacher: Any, logits: Any) -> Any:
    log_probs = logits.log_softmax(-1)
    return -(teacher.softmax(-1) * log_probs).sum(-1)


def above(logits: Any, targets: Any) -> Any:
    """How much more probable the target is than the most probable other token."""
    import torch

    target = torch.nn.functional.one_hot(targets, VOCABULARY) > 0
    probabilities = logits.softmax(-1)
    return probabilities[target] - probabilities.masked_fill(target, -1.0).amax(-1)


# Each function of this rank's shards, the same in plain torch, and the rows that each of its all-reduces holds.
Ours = Callable[[Any, Any, Any, Any], Any]
FUNCTIONS: dict[str, tuple[Ours, Callable[[Any, Any, Any], Any], list[int]]] = {
    "target_log_probs": (
        lambda v, z, t, y: v.target_log_probs(z, y),
        lambda z, t, y: z.log_softmax(-1)[range(ROWS), y],
        [1, 2],
    ),
    "probability_margin": (lambda v, z, t, y: v.probability_margin(z, y), lambda z, t, y: above(z, y), [2, 3]),
    "kl_from_uniform": (
        lambda v, z, t, y: v.kl_from_uniform(z),
        lambda z, t, y: -z.log_softmax(-1).mean(-1) - math.log(VOCABULARY),
        [1, 2],
    ),
    "margin": (lambda v, z, t, y: v.margin(z), lambda z, t, y: z.amax(-1) - z.mean(-1), [1, 2]),
    "kl": (
        lambda v, z, t, y: v.kl(t, z),
        lambda z, t, y: (t.softmax(-1) * (t.log_softmax(-1).clamp(min=-1e9) - z.log_softmax(-1))).sum(-1),
        [2, 3],
    ),
    "soft_cross_entropy": (lambda v, z, t, y: v.soft_cross_entropy(t, z), lambda z, t, y: soft(t, z), [2, 3]),
    "lowered_teacher": (
        lambda v, z, t, y: v.soft_cross_entropy(v.shifted_at(t, y, -10.0), z),
        lambda z, t, y: soft(lowered(t, y, 10.0), z),
        [2, 3],
    ),
    "teacher_without_target": (
        lambda v, z, t, y: v.soft_cross_entropy(v.shifted_at(z.detach(), y, -math.inf), z),
        lambda z, t, y: soft(lowered(z.detach(), y, math.inf), z),
        [2, 3],
    ),
    "shifted_at": (
        lambda v, z, t, y: v.target_log_probs(v.shifted_at(z, y, 2.5), y),
        lambda z, t, y: lowered(z, y, -2.5).log_softmax(-1)[range(ROWS), y],
        [1, 2],
    ),
    "sum": (
        lambda v, z, t, y: v.sum(softplus(0.3 * v.real(z))),
        lambda z, t, y: softplus(0.3 * z).sum(-1),
        [1],
    ),
}


def padded(values: Any) -> Any:
    import torch

    return torch.cat([values, values.new_full((ROWS, PADDED - VOCABULARY), -math.inf)], dim=-1)


def on_ranks(tensor: int) -> dict[str, tuple[list[float], list[list[float]], list[int]]]:
    """Of each function: values, this rank's columns of the gradient, and the rows of each all-reduce."""
    import torch
    import torch.distributed as dist

    from megatron_ext.config import Layout, Runtime
    from megatron_ext.distributed import process_groups
    from megatron_ext.distributed.vocab_parallel import VocabularyShards

    found = {}
    with process_groups.start(Runtime(device="cpu", layout=Layout(tensor=tensor))) as ranks:
        shards = VocabularyShards(ranks.tensor_group, VOCABULARY)
        logits, teacher, targets, weights = case()
        mine = [padded(t).chunk(tensor, dim=-1)[ranks.tensor_rank] for t in (logits, teacher)]
        reduced: list[int] = []
        original = dist.all_reduce

        def counting(values: torch.Tensor, **options: Any) -> None:
            reduced.append(values.numel() // ROWS)
            original(values, **options)

        dist.all_reduce = counting
        for name, (function, _, _) in FUNCTIONS.items():
            shard = mine[0].clone().requires_grad_()
            reduced.clear()
            values = function(shards, shard, mine[1], targets)
            (values * weights).sum().backward()
            found[name] = values.detach().tolist(), shard.grad.tolist(), list(reduced)
            with torch.no_grad():
                torch.testing.assert_close(function(shards, *mine, targets), values.detach(), atol=1e-12, rtol=1e-12)
        reduced.clear()
        moments = shards.log_prob_moments(mine[0])
        found["moments"] = [m.tolist() for m in moments], shards.argmax(mine[0]).tolist(), list(reduced)
        dist.all_reduce = original
    return found


def check(results: list[dict[str, Any]]) -> None:
    import torch

    _, teacher, targets, weights = case()
    for name, (_, plain, collectives) in FUNCTIONS.items():
        logits = case()[0].requires_grad_()
        values = plain(logits, teacher, targets)
        (values * weights).sum().backward()
        for result in results:
            got = torch.tensor(result[name][0], dtype=torch.float64)
            torch.testing.assert_close(got, values.detach(), atol=1e-12, rtol=1e-12, msg=lambda m, n=name: f"{n}: {m}")
            assert result[name][2] == (collectives if len(results) > 1 else []), name
        joined = torch.cat([torch.tensor(result[name][1], dtype=torch.float64) for result in results], dim=-1)
        torch.testing.assert_close(
            joined[:, :VOCABULARY], logits.grad, atol=1e-12, rtol=1e-12, msg=lambda m, n=name: f"{n}: {m}"
        )
        assert joined[:, VOCABULARY:].eq(0).all(), f"{name}: padding has no gradient"
    logits = case()[0]
    probabilities, log_probs = logits.softmax(-1), logits.log_softmax(-1)
    mean = (probabilities * log_probs).sum(-1)
    wanted = torch.stack([mean, (probabilities * (log_probs - mean.unsqueeze(-1)) ** 2).sum(-1)])
    for result in results:
        moments, largest, reduced = result["moments"]
        torch.testing.assert_close(torch.tensor(moments, dtype=torch.float64), wanted, atol=1e-12, rtol=1e-12)
        assert largest == [int(row.eq(row.max()).nonzero()[0]) for row in logits]
        assert reduced == ([1, 2, 1] if len(results) > 1 else [])


def test_on_one_shard() -> None:
    check([on_ranks(1)])


@pytest.mark.slow
@pytest.mark.parametrize("tensor", [2, 4])
def test_over_shards(tensor: int) -> None:
    check(run_ranks(on_ranks, tensor, tensor))


# A teacher that moves with the logits and passes no gradient: what is left is no derivative of the values.
@pytest.mark.parametrize("name", [name for name in FUNCTIONS if name != "teacher_without_target"])
def test_gradients_numerically(name: str, alone: Any) -> None:
    import torch

    from megatron_ext.distributed.vocab_parallel import VocabularyShards

    shards = VocabularyShards(alone.tensor_group, VOCABULARY)
    logits, teacher, targets, _ = case()
    logits[1:3] += torch.linspace(0, 0.1, VOCABULARY, dtype=torch.float64)  # ties have no derivative
    assert torch.autograd.gradcheck(
        lambda z: FUNCTIONS[name][0](shards, z, teacher, targets), (logits.requires_grad_(),)
    )


@pytest.mark.parametrize("name", FUNCTIONS)
def test_computes_in_fp32_whatever_the_logits_are(name: str, alone: Any) -> None:
    import torch

    from megatron_ext.distributed.vocab_parallel import VocabularyShards

    shards = VocabularyShards(alone.tensor_group, VOCABULARY)
    logits, teacher, targets, weights = case()
    function = FUNCTIONS[name][0]
    given = [padded(t).bfloat16() for t in (logits, teacher)]
    low, high = given[0].clone().requires_grad_(), given[0].double().requires_grad_()
    values = function(shards, low, given[1], targets)
    exact = function(shards, high, given[1].double(), targets)
    assert values.dtype == torch.float32 and exact.dtype == torch.float64
    if name != "sum":  # where the test's own function of the entries rounds to bf16
        torch.testing.assert_close(values.double(), exact, atol=1e-5, rtol=1e-5)
    (values * weights).sum().backward()
    (exact * weights).sum().backward()
    assert low.grad.dtype == torch.bfloat16
    torch.testing.assert_close(low.grad.double(), high.grad, atol=1e-6, rtol=0.02)


def test_keeps_one_tensor_of_the_logits_size_at_most(alone: Any) -> None:
    import torch

    from megatron_ext.distributed.vocab_parallel import VocabularyShards

    shards = VocabularyShards(alone.tensor_group, VOCABULARY)
    logits, teacher, targets, _ = case()
    for name, (function, _, _) in FUNCTIONS.items():
        kept: list[int] = []

        def keep(value: torch.Tensor, kept: list[int] = kept) -> torch.Tensor:
            kept.append(value.numel())
            return value

        z = logits.bfloat16().requires_grad_()
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda value: value):
            function(shards, z, teacher.bfloat16(), targets)
        large = sum(size == logits.numel() for size in kept)
        assert large == 1, f"{name} keeps {kept}"


def test_nothing_is_kept_where_no_gradient_is_asked_for(alone: Any) -> None:
    import torch

    from megatron_ext.distributed.vocab_parallel import VocabularyShards

    shards = VocabularyShards(alone.tensor_group, VOCABULARY)
    logits, teacher, targets, _ = case()
    for name, (function, plain, _) in FUNCTIONS.items():
        values = function(shards, logits, teacher, targets)
        assert not values.requires_grad
        torch.testing.assert_close(values, plain(logits, teacher, targets), msg=lambda m, n=name: f"{n}: {m}")


def test_equal_distributions_have_exactly_no_divergence(alone: Any) -> None:

    from megatron_ext.distributed.vocab_parallel import VocabularyShards

    shards = VocabularyShards(alone.tensor_group, VOCABULARY)
    logits = padded(case()[0].float()).requires_grad_()
    values = shards.kl(logits.detach(), logits)
    values.sum().backward()
    assert values.eq(0).all() and logits.grad.eq(0).all()
    assert shards.kl(logits.detach() + 3.0, logits).abs().max() < 1e-5


def test_far_apart_logits_give_no_nan(alone: Any) -> None:
    import torch

    from megatron_ext.distributed.vocab_parallel import VocabularyShards

    shards = VocabularyShards(alone.tensor_group, 3)
    logits = torch.tensor([[1e5, 0.0, -1e5, -math.inf]], requires_grad=True)
    teacher = torch.tensor([[-1e5, 0.0, 1e5, -math.inf]])
    assert [moment.item() for moment in shards.log_prob_moments(logits)] == [0, 0]
    assert shards.kl(teacher, logits).item() == pytest.approx(2e5)
    (shards.kl(teacher, logits) + shards.margin(logits)).sum().backward()
    assert logits.grad.isfinite().all()
    assert logits.grad.tolist()[0] == pytest.approx([1 + 1 - 1 / 3, -1 / 3, -1 - 1 / 3, 0.0])


def test_not_a_number_is_not_hidden(alone: Any) -> None:
    import torch

    from megatron_ext.distributed.vocab_parallel import VocabularyShards

    shards = VocabularyShards(alone.tensor_group, VOCABULARY)
    for bad in (math.nan, math.inf):
        logits, teacher, targets, _ = case()
        logits[0, 4] = bad
        for name, (function, _, _) in FUNCTIONS.items():
            assert not torch.isfinite(function(shards, logits, teacher, targets)[0]), name
