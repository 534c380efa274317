"""Greedy decoding with a key-value cache, under tensor, pipeline and data parallelism."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from megatron.core.inference.contexts import StaticInferenceContext
    from torch import Tensor

    from megatron_ext.inference import Stages
    from megatron_ext.model import LanguageModel
    from megatron_ext.runtime import Ranks


def generate(
    model: LanguageModel,
    ranks: Ranks,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    end_ids: Collection[int],
    token_budget: int,
    progress: bool = True,
) -> list[list[int]]:
    """The most likely next token, again and again, after each prompt; in prompt order, on every rank.

    A row is its new ids, up to but without the first of ``end_ids``. It has at most ``max_new_tokens``, and fewer where
    prompt and new ids fill the model's context. Among equal logits the lowest id wins. Equal prompts are computed once.

    A batch is prompts of similar length, padded on the left to its longest, and its cache takes at most
    ``token_budget`` positions (but always one sequence's). Rows that have ended leave it once they are more than half.
    Every rank calls this with the same arguments. Collectives, besides those of the forward passes: for each token of a
    batch an all-gather of two numbers a row over tensor-parallel ranks and a broadcast of one over the pipeline; at the
    end an all-reduce of the ids over data-parallel ranks.

    Raises ``ValueError`` naming the prompt that is empty, longer than the model's context or outside its vocabulary.
    """
    import torch

    from megatron_ext import inference
    from megatron_ext.families import family_of

    if max_new_tokens < 1:
        raise ValueError(f"max_new_tokens: {max_new_tokens}; at least 1 is needed")
    for i, prompt in enumerate(prompts):
        inference.check_ids(model.hf_config, f"prompt {i}", prompt)
    context = family_of(model.hf_config).context(model.hf_config)
    first, of = inference.once(prompts, key=tuple)
    distinct = [list(prompts[i]) for i in first]
    limits = [min(max_new_tokens, context - len(prompt)) for prompt in distinct]
    batches = inference.plan([len(p) + n for p, n in zip(distinct, limits, strict=True)], token_budget, ranks)

    # Ids are stored one higher, so that zero means "nothing here".
    new = torch.zeros(len(distinct), max_new_tokens, dtype=torch.int64, device=ranks.device)
    stages = inference.Stages(model, ranks)
    with inference.evaluating(model):
        for batch in inference.mine(batches, ranks, "generating", progress):
            rows = _generate(stages, [distinct[i] for i in batch], [limits[i] for i in batch], set(end_ids))
            for i, row in zip(batch, rows, strict=True):
                new[i, : len(row)] = torch.tensor(row, dtype=torch.int64) + 1
        stages.finish()
        inference.over_data_ranks(new, ranks)
    ids = [[token - 1 for token in row if token] for row in new.tolist()]
    return [list(ids[place]) for place in of]


def vocab_parallel_argmax(logits: Tensor, ranks: Ranks) -> Tensor:
    """The id of each row's largest logit, the lowest of several: int64 ``[n]``, the same on every tensor-parallel rank.

    ``logits``: this rank's vocabulary shard ``[n, v / tp]``. One all-gather of fp64 ``[2, n]``, exact for logits of any
    floating-point type up to fp64 and for ids.
    """
    import torch
    import torch.distributed as dist

    local = logits.argmax(dim=-1)
    if ranks.layout.tensor == 1:
        return local
    top = logits.gather(-1, local.unsqueeze(-1)).squeeze(-1)
    best = torch.stack([top.double(), (local + ranks.tensor_rank * logits.size(-1)).double()])
    every = best.new_empty(ranks.layout.tensor, *best.shape)
    dist.all_gather(list(every.unbind()), best, group=ranks.tensor_group)
    # The first shard that attains the maximum has the lowest id.
    shard = every[:, 0].argmax(dim=0)
    return every[:, 1].gather(0, shard.unsqueeze(0)).squeeze(0).long()


def _generate(stages: Stages, prompts: list[list[int]], limits: list[int], end_ids: set[int]) -> list[list[int]]:
    """New ids of each prompt of one batch, on every stage: one prefill, then one-token passes."""
    import torch
    from megatron.core.inference.contexts import StaticInferenceContext

    device = stages.ranks.device
    new: list[list[int]] = [[] for _ in prompts]
    alive = [limit > 0 for limit in limits]
    if not any(alive):
        return new
    longest, steps = max(map(len, prompts)), max(limits)
    padding = torch.tensor([longest - len(prompt) for prompt in prompts], device=device)
    ids = torch.tensor([[0] * (longest - len(prompt)) + prompt for prompt in prompts], device=device)
    rows = list(range(len(prompts)))  # of the batch as it stands: which prompt each row continues
    cache = StaticInferenceContext(len(prompts), longest + steps - 1)

    while True:
        hidden = stages.forward(ids, _mask(padding, cache.sequence_len_offset, ids.size(1)), cache)
        cache.increment_sequence_len_offset(ids.size(1))
        cache.enable_decode_mode()
        if hidden is None:
            chosen = torch.empty(len(rows), dtype=torch.int64, device=device)
        else:
            chosen = vocab_parallel_argmax(stages.model.logits(hidden[-1]), stages.ranks)
        stages.from_last(chosen)
        for row, token in zip(rows, chosen.tolist(), strict=True):
            if not alive[row]:
                continue
            if token in end_ids:
                alive[row] = False
            else:
                new[row].append(token)
                alive[row] = len(new[row]) < limits[row]
        kept = [place for place, row in enumerate(rows) if alive[row]]
        if not kept:
            return new
        if 2 * len(kept) < len(rows):
            index = torch.tensor(kept, device=device)
            _keep_rows(cache, index)
            rows, padding, chosen = [rows[place] for place in kept], padding[index], chosen[index]
        ids = chosen.unsqueeze(1)


def _mask(padding: Tensor, start: int, length: int) -> Tensor | None:
    """What the queries at positions ``start ... start + length - 1`` must not attend to: bool ``[b, 1, length, keys]``.

    ``padding``: how many positions of each row's left are padding. None where no row has any: plain causal attention.
    A padding position attends to itself, because attention to nothing is not a number.
    """
    import torch

    if not padding.any():
        return None
    keys = torch.arange(start + length, device=padding.device)
    queries = keys[start:].unsqueeze(1)
    forbidden = (keys > queries) | (keys < padding.view(-1, 1, 1, 1))
    return forbidden & (keys != queries)


def _keep_rows(cache: StaticInferenceContext, index: Tensor) -> None:
    """Drop the batch rows that are not in ``index`` from the cache: ``[positions, b, groups, d]`` for each layer."""
    cache.max_batch_size = len(index)
    for layer, tensors in cache.key_value_memory_dict.items():
        cache.key_value_memory_dict[layer] = tuple(tensor.index_select(1, index) for tensor in tensors)
