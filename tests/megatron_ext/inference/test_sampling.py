"""Drawn tokens: their shares against the formula, and on what they depend."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from megatron_ext.distributed.vocab_parallel import VocabularyShards
from megatron_ext.inference.generation import GenerateRequest, samples
from megatron_ext.inference.sampling import Sampling, draw

LOGITS = [2.0, -1.0, 2.0, 0.5, 1.9, -3.0, float("-inf")]  # the last column pads the vocabulary
N = 20_000


def formula(temperature: float, top_p: float, top_k: int | None) -> list[float]:
    """Shares of the six tokens, in plain Python."""
    weights = [2.718281828459045 ** (z / temperature) for z in LOGITS[:6]]
    order = sorted(range(6), key=lambda i: -weights[i])[:top_k]
    total, kept, sofar = sum(weights[i] for i in order), [], 0.0
    for i in order:
        if sofar < top_p * total:
            kept.append(i)
        sofar += weights[i]
    return [weights[i] / sum(weights[j] for j in kept) if i in kept else 0.0 for i in range(6)]


@pytest.mark.parametrize(
    ("temperature", "top_p", "top_k"),
    [(1.0, 1.0, None), (0.5, 1.0, None), (2.0, 0.8, None), (1.0, 1.0, 3), (1.5, 0.7, 4), (1.0, 1e-9, None)],
)
def test_shares_are_those_of_the_formula(alone: Any, temperature: float, top_p: float, top_k: int | None) -> None:
    """A share of 20 000 draws is within 5 standard deviations; what is left out is never drawn."""
    shards = VocabularyShards(alone.tensor_group, 6)
    ways = [Sampling(temperature, top_p, top_k, seed) for seed in range(N)]
    drawn = draw(torch.tensor(LOGITS).expand(N, -1), shards, ways, [[1]] * N, [0] * N)
    for count, share in zip(
        drawn.bincount(minlength=7).tolist(), [*formula(temperature, top_p, top_k), 0.0], strict=True
    ):
        assert abs(count - N * share) <= 5 * (N * share * (1 - share)) ** 0.5


def test_a_draw_depends_on_seed_prompt_and_place_alone(alone: Any) -> None:
    shards, how = VocabularyShards(alone.tensor_group, 6), Sampling(1.0)
    first = GenerateRequest([3, 4], 9, sampling=how)
    asked = [first, *samples(first, 2), GenerateRequest([4, 3], 9, sampling=how)]

    def draws(requests: list[GenerateRequest]) -> list[list[int]]:
        logits = torch.tensor(LOGITS).expand(len(requests), -1)
        ways = [way for one in requests if (way := one.sampling)]
        prompts = [one.prompt for one in requests]
        places = [[i] * len(requests) for i in range(30)]
        return torch.stack([draw(logits, shards, ways, prompts, place) for place in places], dim=1).tolist()

    found = draws(asked)
    assert len({tuple(row) for row in found}) == 4
    assert draws(asked[::-1]) == found[::-1] and draws(asked[:1]) == found[:1]
    assert samples(first, 3)[:2] == samples(first, 2)


@pytest.mark.parametrize(
    ("wrong", "key"),
    [(Sampling(0.0), "temperature: 0.0"), (Sampling(1.0, 0.0), "top_p: 0.0"), (Sampling(1.0, top_k=0), "top_k: 0")],
)
def test_numbers_out_of_bounds_are_named(wrong: Sampling, key: str) -> None:
    with pytest.raises(ValueError, match=key):
        wrong.check()


def test_a_greedy_request_has_one_answer() -> None:
    with pytest.raises(ValueError, match="greedy"):
        samples(GenerateRequest([1], 1), 2)
