"""Vocabulary-parallel functions against torch on the whole vocabulary, values and gradients."""

from __future__ import annotations

from typing import Any

import pytest

from tests.distributed import run_ranks

ROWS, VOCABULARY, PADDED = 7, 11, 12


def case() -> tuple[Any, Any, Any]:
    import torch

    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(ROWS, VOCABULARY, generator=generator) * 5
    targets = torch.tensor([0, 10, 5, 6, 3, 10, 0])
    weights = torch.randn(ROWS, generator=generator)
    return logits, targets, weights


def expected() -> tuple[Any, Any]:
    logits, targets, weights = case()
    logits.requires_grad_()
    values = logits.log_softmax(-1)[range(ROWS), targets]
    (values * weights).sum().backward()
    return values.detach(), logits.grad


def on_ranks(tensor: int) -> tuple[list[float], list[list[float]]]:
    """Values, and this rank's columns of the gradient, on the real vocabulary padded to ``PADDED``."""
    import torch

    from megatron_ext import runtime
    from megatron_ext.specs import Layout, Runtime
    from megatron_ext.vocab_parallel import target_log_probs

    with runtime.start(Runtime(device="cpu", layout=Layout(tensor=tensor))) as ranks:
        logits, targets, weights = case()
        padded = torch.cat([logits, torch.full((ROWS, PADDED - VOCABULARY), -torch.inf)], dim=-1)
        shard = padded.chunk(tensor, dim=-1)[ranks.tensor_rank].clone().requires_grad_()
        values = target_log_probs(shard, targets, ranks.tensor_group)
        (values * weights).sum().backward()
        return values.detach().tolist(), shard.grad.tolist()


def check(results: list[tuple[Any, Any]]) -> None:
    import torch

    values, gradient = expected()
    for got, _ in results:
        torch.testing.assert_close(torch.tensor(got), values, atol=1e-6, rtol=1e-6)
    joined = torch.cat([torch.tensor(g) for _, g in results], dim=-1)
    torch.testing.assert_close(joined[:, :VOCABULARY], gradient, atol=1e-6, rtol=1e-6)
    assert joined[:, VOCABULARY:].eq(0).all(), "padding has no gradient"


def test_target_log_probs_on_one_shard() -> None:
    check([on_ranks(1)])


@pytest.mark.slow
@pytest.mark.parametrize("tensor", [2, 3])
def test_target_log_probs_over_shards(tensor: int) -> None:
    check(run_ranks(on_ranks, tensor, tensor))
