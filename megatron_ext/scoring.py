"""Log-probabilities of given texts after given prompts, under tensor, pipeline and data parallelism."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from megatron_ext.model import LanguageModel
    from megatron_ext.runtime import Ranks

# Logits held at a time, on each rank: 256 MiB in fp32.
LOGITS = 1 << 26


@dataclass(frozen=True)
class ScoreRequest:
    """Token ids of a prompt, and of what follows it; neither is empty."""

    prompt: list[int]
    target: list[int]


@dataclass(frozen=True)
class Score:
    """``log_prob``: natural logarithm of the target's probability, summed over its ``tokens``."""

    log_prob: float
    tokens: int


def score(
    model: LanguageModel, ranks: Ranks, requests: Sequence[ScoreRequest], token_budget: int, progress: bool = True
) -> list[Score]:
    """``sum_t log p(target[t] | prompt, target[:t])`` of each request, in request order, on every rank.

    Log-probabilities are fp32, their sum fp64. Equal requests are computed once. A forward pass takes at most
    ``token_budget`` tokens, padding included (but always one sequence); logits exist only where they predict a target
    token. Every rank calls this with the same requests. Collectives: those of the forward passes, then a broadcast
    over the pipeline and an all-reduce over data-parallel ranks of one fp64 number a distinct request.

    Raises ``ValueError`` naming the request that is empty, longer than the model's context or outside its vocabulary.
    """
    import torch

    from megatron_ext import inference

    for i, request in enumerate(requests):
        for part in ("prompt", "target"):
            inference.check_ids(model.hf_config, f"request {i}: {part}", getattr(request, part))
        inference.check_ids(model.hf_config, f"request {i}", [*request.prompt, *request.target])
    first, of = inference.once(requests, key=lambda r: (tuple(r.prompt), tuple(r.target)))
    distinct = [requests[i] for i in first]
    batches = inference.plan([len(r.prompt) + len(r.target) - 1 for r in distinct], token_budget, ranks)

    log_probs = torch.zeros(len(distinct), dtype=torch.float64, device=ranks.device)
    stages = inference.Stages(model, ranks)
    with inference.evaluating(model):
        for batch in inference.mine(batches, ranks, "scoring", progress):
            rows = [distinct[i] for i in batch]
            hidden = stages.forward(_inputs(rows).to(ranks.device))
            if hidden is not None:
                log_probs[batch] = _log_probs(model, ranks, hidden, rows)
        stages.finish()
        inference.over_data_ranks(stages.from_last(log_probs), ranks)
    values = log_probs.tolist()
    return [Score(values[place], len(request.target)) for place, request in zip(of, requests, strict=True)]


def _inputs(rows: list[ScoreRequest]) -> Tensor:
    """All tokens but the last of each row: int64 ``[b, s]``, padded on the right, where causal attention looks not."""
    import torch

    inputs = [torch.tensor([*row.prompt, *row.target[:-1]]) for row in rows]
    return torch.nn.utils.rnn.pad_sequence(inputs, batch_first=True)


def _log_probs(model: LanguageModel, ranks: Ranks, hidden: Tensor, rows: list[ScoreRequest]) -> Tensor:
    """fp64 ``[b]`` from hidden states ``[s, b, h]``."""
    import torch

    from megatron_ext.vocab_parallel import VocabularyShards

    device = hidden.device
    counts = torch.tensor([len(row.target) for row in rows])
    row_of = torch.repeat_interleave(torch.arange(len(rows)), counts)
    position = torch.cat([len(row.prompt) - 1 + torch.arange(len(row.target)) for row in rows])
    places = (position * len(rows) + row_of).to(device)
    targets = torch.tensor([token for row in rows for token in row.target], device=device)
    flat = hidden.reshape(-1, hidden.size(-1))
    size = max(1, LOGITS * ranks.layout.tensor // model.vocab_size)
    shards = VocabularyShards(ranks.tensor_group, model.hf_config["vocab_size"])
    chunks = [
        shards.target_log_probs(model.logits(flat[some]), wanted)
        for some, wanted in zip(places.split(size), targets.split(size), strict=True)
    ]
    sums = torch.zeros(len(rows), dtype=torch.float64, device=device)
    return sums.index_add_(0, row_of.to(device), torch.cat(chunks).double())
