"""Decoding with a key-value cache, greedy or sampled, under tensor, pipeline and data parallelism."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from megatron.core.inference.contexts import StaticInferenceContext
    from torch import Tensor

    from megatron_ext.distributed.process_groups import Ranks
    from megatron_ext.inference.pipeline_forward import PipelineForward
    from megatron_ext.inference.response_cache import ResponseCache
    from megatron_ext.inference.sampling import Sampling
    from megatron_ext.model.build import LanguageModel


# Of a batch's rows; below it the ended ones leave, which costs about half a step.
ALIVE = 7 / 8


@dataclass(frozen=True)
class GenerateRequest:
    """A prompt to continue.

    Attributes:
        prompt: Token ids.
        max_new_tokens: Bound on the continuation.
        stops: Texts of which the first to appear ends the continuation.
        sampling: How new tokens are drawn; None for the most likely ones.
    """

    prompt: list[int]
    max_new_tokens: int
    stops: tuple[str, ...] = ()
    sampling: Sampling | None = None


def samples(request: GenerateRequest, n: int) -> list[GenerateRequest]:
    """``n`` requests that differ in their seed alone: ``n`` independent answers to one prompt.

    Args:
        request: A request that samples.
        n: How many.

    Returns:
        Requests with seeds that follow from the request's own.

    Raises:
        ValueError: The request is greedy.
    """
    from megatron_ext.inference.sampling import seeds

    way = request.sampling
    if way is None:
        raise ValueError("a greedy request has one answer")
    ways = [dataclasses.replace(way, seed=seed) for seed in seeds(way.seed, n)]
    return [dataclasses.replace(request, sampling=one) for one in ways]


# Whether the text of new ids holds one of the stops; megatron_ext knows no tokenizer. Called when ids have one more.
Stopped = Callable[[list[int], tuple[str, ...]], bool]


def generate(
    model: LanguageModel,
    ranks: Ranks,
    requests: Sequence[GenerateRequest],
    end_ids: Collection[int],
    token_budget: int,
    stopped: Stopped | None = None,
    progress: bool = True,
    answers: ResponseCache | None = None,
) -> list[list[int]]:
    """Decoding: the most likely next token, again and again, after each prompt, or one that is drawn.

    Among equal logits the lowest id wins. What is drawn follows from the request alone (``sampling``). Equal requests
    are computed once. A batch is prompts of similar length, padded on the left to its longest. Rows that have ended
    leave it once they are an eighth.

    Every rank calls this with the same arguments. Collectives, besides those of the forward passes: for each token of a
    batch an all-gather of two numbers a row over tensor-parallel ranks (and of the logits of rows that sample) and a
    broadcast of one over the pipeline; at the end an all-reduce of the ids over data-parallel ranks.

    Args:
        model: This rank's stage of the model.
        ranks: Where this process stands.
        requests: What to continue.
        end_ids: Ids that end a continuation; they are no part of it.
        token_budget: Positions that a batch's key-value cache takes at most, but always one sequence's.
        stopped: Says whether a continuation has come to one of its stops; its last id is that with which it first does.
        progress: Whether the first rank shows a progress bar.
        answers: What is known already; it grows batch by batch.

    Returns:
        New ids of each request, in the order of the requests, on every rank: at most ``max_new_tokens``, and fewer
        where prompt and new ids fill the model's context.

    Raises:
        ValueError: Naming the prompt, for one that is empty, longer than the model's context or outside its vocabulary.
    """
    from megatron_ext.inference import pipeline_forward
    from megatron_ext.inference.pipeline_forward import PipelineForward
    from megatron_ext.inference.response_cache import recall

    _check(model, requests, stopped)
    unique = pipeline_forward.deduplicate(
        requests, key=lambda r: (tuple(r.prompt), r.max_new_tokens, r.stops, r.sampling)
    )
    ends = sorted(end_ids)
    parts = [(r.prompt, r.max_new_tokens, r.stops, ends, *_settings(r)) for r in unique.items]
    keys, known = recall(answers, "generate", parts)
    missing = [i for i, answer in enumerate(known) if answer is None]

    def keep(rows: dict[int, list[int]]) -> None:
        if answers is not None:
            answers.add([(keys[missing[i]], row) for i, row in rows.items()])

    distinct, stages = [unique.items[i] for i in missing], PipelineForward(model, ranks)
    new = _in_batches(stages, distinct, ends, token_budget, stopped, progress, keep)
    for i, row in zip(missing, new, strict=True):
        known[i] = row
    return [list(known[place]) for place in unique.place_of]


def _check(model: LanguageModel, requests: Sequence[GenerateRequest], stopped: Stopped | None) -> None:
    """Raise ``ValueError`` that names a prompt that cannot be continued as is asked."""
    from megatron_ext.inference import pipeline_forward

    for i, request in enumerate(requests):
        if request.max_new_tokens < 1:
            raise ValueError(f"prompt {i}: max_new_tokens: {request.max_new_tokens}; at least 1 is needed")
        if request.stops and stopped is None:
            raise ValueError(f"prompt {i}: has stops, but nothing tells where they appear")
        if request.sampling is not None:
            try:
                request.sampling.check()
            except ValueError as error:
                raise ValueError(f"prompt {i}: {error}") from None
        pipeline_forward.check_ids(model.hf_config, f"prompt {i}", request.prompt)


def _settings(request: GenerateRequest) -> tuple[object, ...]:
    """What tells a request that samples from others with the same prompt; nothing for a greedy one."""
    return () if request.sampling is None else dataclasses.astuple(request.sampling)


def _in_batches(
    stages: PipelineForward,
    requests: Sequence[GenerateRequest],
    end_ids: Collection[int],
    token_budget: int,
    stopped: Stopped | None,
    progress: bool,
    keep: Callable[[dict[int, list[int]]], None],
) -> list[list[int]]:
    """New ids of distinct requests, on every rank; ``keep`` is given this rank's, by number, batch by batch."""
    import torch

    from megatron_ext.distributed.collectives import sum_over_data_ranks
    from megatron_ext.inference import pipeline_forward
    from megatron_ext.model.families import family_of

    model, ranks = stages.model, stages.ranks
    context = family_of(model.hf_config).context(model.hf_config)
    limits = [min(request.max_new_tokens, context - len(request.prompt)) for request in requests]
    lengths = [len(request.prompt) + limit for request, limit in zip(requests, limits, strict=True)]
    # Ids are stored one higher, so that zero means "nothing here".
    new = torch.zeros(len(requests), max(limits, default=0), dtype=torch.int64, device=ranks.device)
    with pipeline_forward.evaluating(model):
        batches = pipeline_forward.plan(lengths, token_budget, ranks)
        for batch in pipeline_forward.rank_batches(batches, ranks, "generating", progress):
            rows = _generate(stages, [requests[i] for i in batch], [limits[i] for i in batch], set(end_ids), stopped)
            for i, row in zip(batch, rows, strict=True):
                new[i, : len(row)] = torch.tensor(row, dtype=torch.int64) + 1
            keep(dict(zip(batch, rows, strict=True)))
        stages.finish()
        sum_over_data_ranks(new, ranks)
    return [[token - 1 for token in row if token] for row in new.tolist()]


def _generate(
    stages: PipelineForward,
    requests: list[GenerateRequest],
    limits: list[int],
    end_ids: set[int],
    stopped: Stopped | None,
) -> list[list[int]]:
    """New ids of each request of one batch, on every stage: one prefill, then one-token passes."""
    import torch
    from megatron.core.inference.contexts import StaticInferenceContext

    device, prompts = stages.ranks.device, [request.prompt for request in requests]
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
            chosen = _choose(stages, hidden[-1], requests, rows, [len(new[row]) for row in rows])
        stages.from_last(chosen)
        for row, token in zip(rows, chosen.tolist(), strict=True):
            if not alive[row]:
                continue
            if token in end_ids:
                alive[row] = False
            else:
                new[row].append(token)
                alive[row] = len(new[row]) < limits[row]
                if stopped is not None and requests[row].stops and stopped(new[row], requests[row].stops):
                    alive[row] = False
        kept = [place for place, row in enumerate(rows) if alive[row]]
        if not kept:
            return new
        if len(kept) <= ALIVE * len(rows):
            index = torch.tensor(kept, device=device)
            _keep_rows(cache, index)
            rows, padding, chosen = [rows[place] for place in kept], padding[index], chosen[index]
        ids = chosen.unsqueeze(1)


def _choose(
    stages: PipelineForward, hidden_NH: Tensor, requests: list[GenerateRequest], rows: list[int], places: list[int]
) -> Tensor:
    """The next token of each row, int64 ``[N]``, on the last stage.

    Args:
        stages: This rank's part of the model.
        hidden_NH: Hidden states at the rows' last positions.
        requests: What is continued.
        rows: Which request each row continues.
        places: How many new tokens each row has.
    """
    from megatron_ext.distributed.vocab_parallel import VocabularyShards
    from megatron_ext.inference.sampling import draw

    shards = VocabularyShards(stages.ranks.tensor_group, stages.model.hf_config["vocab_size"])
    logits_NV = stages.model.logits(hidden_NH)
    chosen_N = shards.argmax(logits_NV)
    ways = {place: way for place, row in enumerate(rows) if (way := requests[row].sampling) is not None}
    if ways:
        drawn, prompts = list(ways), [requests[rows[place]].prompt for place in ways]
        new = [places[place] for place in ways]
        chosen_N[drawn] = draw(logits_NV[drawn], shards, list(ways.values()), prompts, new)
    return chosen_N


def _mask(padding: Tensor, start: int, length: int) -> Tensor | None:
    """What the queries at positions ``start ... start + length - 1`` must not attend to.

    A padding position attends to itself, because attention to nothing is not a number.

    Args:
        padding: int64 ``[B]``, how many positions on each row's left are padding.
        start: The first query's position.
        length: How many queries there are.

    Returns:
        bool ``[B, 1, length, keys]``; None where no row has padding: plain causal attention.
    """
    import torch

    if not padding.any():
        return None
    keys = torch.arange(start + length, device=padding.device)
    queries = keys[start:].unsqueeze(1)
    forbidden = (keys > queries) | (keys < padding.view(-1, 1, 1, 1))
    return forbidden & (keys != queries)


def _keep_rows(cache: StaticInferenceContext, index: Tensor) -> None:
    """Drop the batch rows that are not in ``index`` from the cache: ``[B, groups, positions, d]`` for each layer."""
    cache.max_batch_size = len(index)
    for layer, tensors in cache.key_value_memory_dict.items():
        cache.key_value_memory_dict[layer] = tuple(tensor.index_select(0, index) for tensor in tensors)
