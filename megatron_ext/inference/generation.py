"""Decoding with a key-value cache, greedy or sampled, under tensor, pipeline and data parallelism."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Collection, Sequence
from typing import TYPE_CHECKING

from megatron_ext.inference.generate_request import GenerateRequest, Stopped

if TYPE_CHECKING:
    from megatron_ext.distributed.process_groups import Ranks
    from megatron_ext.inference.answering import Answering
    from megatron_ext.inference.pipeline_forward import PipelineForward
    from megatron_ext.inference.response_cache import ResponseCache
    from megatron_ext.model.build import LanguageModel

__all__ = ["GenerateRequest", "Stopped", "generate", "samples"]

# About as many answers as fill the cache so many times are computed one after another, as ended ones make room; what a
# killed program has to do again is at most these.
FILLINGS = 4


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
    are computed once. Prompts are taken longest first, as many at once as the cache has room for; where an eighth of
    its answers have ended, the next ones take their places. What prompts taken at once begin with alike is read once.

    Where a greedy answer repeats what its prompt or itself has said, the tokens that followed there are guessed, and
    read with the last one in one pass (Saxena 2023, prompt lookup decoding). A guess stays only if it is the most
    likely token where it stands, so that the tokens are those of one pass for each; but between two logits that differ
    by rounding alone either may win, as with other batches.

    Every rank calls this with the same arguments. Collectives, besides those of the forward passes: for each of them an
    all-gather of two numbers a token over tensor-parallel ranks (and of the logits of rows that sample) and a
    broadcast of one over the pipeline; at the end an all-reduce of the ids over data-parallel ranks.

    Args:
        model: This rank's stage of the model.
        ranks: Where this process stands.
        requests: What to continue.
        end_ids: Ids that end a continuation; they are no part of it.
        token_budget: Positions that a key-value cache takes at most, but always one sequence's.
        stopped: Says whether a continuation has come to one of its stops; its last id is that with which it first does.
        progress: Whether the first rank shows a progress bar.
        answers: What is known already; it grows by as many as fill the cache ``FILLINGS`` times.

    Returns:
        New ids of each request, in the order of the requests, on every rank: at most ``max_new_tokens``, and fewer
        where prompt and new ids fill the model's context.

    Raises:
        ValueError: Naming the prompt, for one that is empty, longer than the model's context or outside its vocabulary.
    """
    from megatron_ext.inference import pipeline_forward
    from megatron_ext.inference.answering import Answering
    from megatron_ext.inference.pipeline_forward import PipelineForward
    from megatron_ext.inference.response_cache import recall

    _check(model, requests, stopped)
    unique = pipeline_forward.deduplicate(
        requests, key=lambda r: (tuple(r.prompt), r.max_new_tokens, r.stops, r.sampling)
    )
    ends = sorted(end_ids)
    parts = [(r.prompt, r.max_new_tokens, r.stops, ends, *_settings(r)) for r in unique.items]
    limits = _limits(model, unique.items)
    lengths = [len(request.prompt) + limit for request, limit in zip(unique.items, limits, strict=True)]
    recalled = recall(answers, "generate", parts, _queues(lengths, token_budget, ranks))

    def keep(rows: dict[int, list[int]]) -> None:
        if answers is not None:
            answers.add([(recalled.keys[i], row) for i, row in rows.items()])

    stages = PipelineForward(model, ranks)

    def answering(queue: Sequence[int]) -> Answering:
        items, most = [unique.items[i] for i in queue], [limits[i] for i in queue]
        return Answering(items, most, set(ends), stopped, max(1, token_budget // max(lengths[i] for i in queue)))

    new = recalled.known | _in_queues(stages, recalled.left, limits, answering, progress, keep)
    return [list(new[place]) for place in unique.place_of]


def _limits(model: LanguageModel, requests: Sequence[GenerateRequest]) -> list[int]:
    """How many new ids each request may have: as many as it asks for, where they fit the model's context."""
    from megatron_ext.model.families import family_of

    context = family_of(model.hf_config).context(model.hf_config)
    return [min(request.max_new_tokens, context - len(request.prompt)) for request in requests]


def _queues(lengths: Sequence[int], token_budget: int, ranks: Ranks) -> list[list[int]]:
    """Numbers of the requests that are answered one after another, longest first: in as many queues of one size as come
    nearest to ``FILLINGS``, and as many for each data-parallel rank. The same on every rank."""
    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    if not order:
        return []
    rows = max(1, token_budget // lengths[order[0]])
    count = ranks.layout.data * max(1, round(len(order) / (FILLINGS * rows * ranks.layout.data)))
    bounds = [len(order) * i // count for i in range(count + 1)]
    return [order[start:end] for start, end in itertools.pairwise(bounds) if start < end]


def _check(model: LanguageModel, requests: Sequence[GenerateRequest], stopped: Stopped | None) -> None:
    """Raise ``ValueError`` that names a prompt that cannot be continued as is asked."""
    from megatron_ext.inference import pipeline_forward

    readable = pipeline_forward.Readable(model.hf_config)
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
        readable.check(f"prompt {i}", request.prompt)


def _settings(request: GenerateRequest) -> tuple[object, ...]:
    """What tells a request that samples from others with the same prompt; nothing for a greedy one."""
    return () if request.sampling is None else dataclasses.astuple(request.sampling)


def _in_queues(
    stages: PipelineForward,
    queues: list[list[int]],
    limits: Sequence[int],
    answering: Callable[[Sequence[int]], Answering],
    progress: bool,
    keep: Callable[[dict[int, list[int]]], None],
) -> dict[int, list[int]]:
    """New ids of the requests in ``queues``, by number on every rank; ``keep`` is given this rank's by queue."""
    import torch

    from megatron_ext.distributed.collectives import sum_over_data_ranks
    from megatron_ext.inference import pipeline_forward

    ranks = stages.ranks
    numbers = [i for queue in queues for i in queue]
    places = {i: place for place, i in enumerate(numbers)}
    # Ids are stored one higher, so that zero means "nothing here".
    longest = max((limits[i] for i in numbers), default=0)
    new = torch.zeros(len(numbers), longest, dtype=torch.int64, device=ranks.device)
    own = pipeline_forward.own_batches(queues, ranks)
    bar = pipeline_forward.progress_bar(own, ranks, "generating", progress)
    with pipeline_forward.evaluating(stages.model), bar:
        for queue in own:
            rows = answering(queue).run(stages, bar.update)
            for i, row in zip(queue, rows, strict=True):
                new[places[i], : len(row)] = torch.tensor(row, dtype=torch.int64) + 1
            keep(dict(zip(queue, rows, strict=True)))
        stages.finish()
        sum_over_data_ranks(new, ranks)
    return {i: [token - 1 for token in row if token] for i, row in zip(numbers, new.tolist(), strict=True)}
