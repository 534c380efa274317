"""Answers with a key-value cache: passes over prompts, and passes over what follows.

A prompt that waits takes the place of an answer that has ended (Orca, OSDI 2022, iteration-level scheduling).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from megatron_ext.distributed.vocab_parallel import VocabularyShards
from megatron_ext.inference import shared_prefixes
from megatron_ext.inference.generate_request import GenerateRequest, Stopped
from megatron_ext.inference.lookup import Lookup
from megatron_ext.inference.pipeline_forward import PipelineForward
from megatron_ext.inference.sampling import draw
from megatron_ext.inference.scoring import positions_at_a_time
from megatron_ext.model.cache import Cache, Kept
from megatron_ext.model.continuation import Continuation, continue_rows
from megatron_ext.model.packing import Packing

# Of the cache's rows; from here down prompts that wait take the places of the ended ones, or these leave it.
ALIVE = 7 / 8


class Answering:
    """What each of a queue of requests has so far. The same on every rank of a copy of the model."""

    def __init__(
        self,
        requests: Sequence[GenerateRequest],
        limits: Sequence[int],
        end_ids: Collection[int],
        stopped: Stopped | None,
        at_once: int,
    ) -> None:
        """Nothing is answered yet.

        Args:
            requests: What is continued, in this order.
            limits: How many new tokens each may have.
            end_ids: Ids that end an answer; they are no part of it.
            stopped: Says whether an answer has come to one of its stops.
            at_once: Rows of the cache, at most.
        """
        self._requests, self._limits, self._end_ids, self._stopped = requests, limits, end_ids, stopped
        self._at_once = at_once
        self.new: list[list[int]] = [[] for _ in requests]
        self._alive = [limit > 0 for limit in limits]
        self._lookups = [Lookup(request.prompt) if request.sampling is None else None for request in requests]

    def run(self, stages: PipelineForward, ended: Callable[[int], object]) -> list[list[int]]:
        """New ids of each request, on every stage; ``ended`` is told how many have become whole since."""
        ended(self._alive.count(False))
        waiting = deque(row for row, alive in enumerate(self._alive) if alive)
        if not waiting:
            return self.new
        device = stages.ranks.device
        # The last new token is not read.
        lengths = [len(r.prompt) + max(0, limit - 1) for r, limit in zip(self._requests, self._limits, strict=True)]
        cache = Cache(min(self._at_once, len(waiting)), max(lengths))
        rows = [waiting.popleft() for _ in range(cache.rows)]  # of the cache: which request each continues
        joined = list(range(cache.rows))  # places of which the prompt is not read yet
        reading: Packing | Continuation
        while True:
            asked = [rows[place] for place in joined] or [row for row in rows if self._alive[row]]
            guesses = [[] if joined else self._guess(row) for row in asked]
            if joined:
                ids, reading, ends = _prompts([self._requests[row].prompt for row in asked], joined, device)
            else:
                ids, reading = self._following(rows, dict(zip(asked, guesses, strict=True)), device)
                ends = torch.arange(ids.size(1), device=device)
            hidden_T1H = stages.forward(ids, reading, cache)
            if hidden_T1H is None:
                chosen = torch.empty(len(ends), dtype=torch.int64, device=device)
            else:
                chosen = self._choose(stages, hidden_T1H.squeeze(1)[ends], asked, guesses)
            stages.from_last(chosen)
            self._take(asked, guesses, chosen.tolist())
            ended(sum(not self._alive[row] for row in asked))
            kept = [place for place, row in enumerate(rows) if self._alive[row]]
            joined = []
            if len(kept) > ALIVE * cache.rows:
                continue
            if waiting:
                joined = sorted(set(range(cache.rows)) - set(kept))[: len(waiting)]
                for place in joined:
                    rows[place] = waiting.popleft()
            elif kept:
                length = max(len(self._requests[rows[place]].prompt) + len(self.new[rows[place]]) for place in kept)
                rows = [rows[place] for place in cache.keep_rows(kept, length - 1)]  # the last one is not read yet
            else:
                return self.new

    def _choose(
        self, stages: PipelineForward, hidden_NH: Tensor, asked: Sequence[int], guesses: Sequence[Sequence[int]]
    ) -> Tensor:
        """The next token after each of ``N``, int64, on the last stage: after the last one of every asked row, and
        after each of its guesses."""
        model, ranks = stages.model, stages.ranks
        shards = VocabularyShards(ranks.tensor_group, model.hf_config["vocab_size"])
        starts, place = [], 0
        for guess in guesses:
            starts.append(place)
            place += 1 + len(guess)
        ways = {start: row for start, row in zip(starts, asked, strict=True) if self._requests[row].sampling}
        chosen, first = [], 0
        for some_NH in hidden_NH.split(positions_at_a_time(model, ranks)):
            logits_NV = model.logits(some_NH)
            chosen_N = shards.argmax(logits_NV)
            drawn = [start - first for start in ways if first <= start < first + len(some_NH)]
            if drawn:
                of = [ways[first + start] for start in drawn]
                how = [way for row in of if (way := self._requests[row].sampling) is not None]
                prompts, places = [self._requests[row].prompt for row in of], [len(self.new[row]) for row in of]
                chosen_N[drawn] = draw(logits_NV[drawn], shards, how, prompts, places)
            chosen.append(chosen_N)
            first += len(some_NH)
        return torch.cat(chosen)

    def _take(self, asked: Sequence[int], guesses: Sequence[Sequence[int]], chosen: Sequence[int]) -> None:
        """Add to each asked row the token after its last one, and after each guess that was right the one after it."""
        place = 0
        for row, guess in zip(asked, guesses, strict=True):
            right = 0
            while right < len(guess) and guess[right] == chosen[place + right]:
                right += 1
            for token in chosen[place : place + right + 1]:
                if self._alive[row]:
                    self._add(row, token)
            lookup = self._lookups[row]
            if lookup is not None:
                lookup.judge(len(guess), right)
            place += 1 + len(guess)

    def _add(self, row: int, token: int) -> None:
        new, lookup, stops = self.new[row], self._lookups[row], self._requests[row].stops
        if token in self._end_ids:
            self._alive[row] = False
            return
        new.append(token)
        if lookup is not None:
            lookup.add(token)
        self._alive[row] = len(new) < self._limits[row]
        if self._stopped is not None and stops and self._stopped(new, stops):
            self._alive[row] = False

    def _guess(self, row: int) -> list[int]:
        lookup = self._lookups[row]
        return [] if lookup is None else lookup.guess(self._limits[row] - len(self.new[row]) - 1)

    def _following(
        self, rows: Sequence[int], guesses: dict[int, list[int]], device: torch.device
    ) -> tuple[Tensor, Continuation]:
        """What is read of the rows of the cache: of those with an entry in ``guesses`` the last token and these."""
        read = [[self.new[row][-1], *guesses[row]] if row in guesses else [] for row in rows]
        starts = [len(self._requests[row].prompt) + len(self.new[row]) - 1 for row in rows]
        ids = [token for tokens in read for token in tokens]
        return torch.tensor([ids], device=device), continue_rows(starts, list(map(len, read)), device)


def _prompts(prompts: Sequence[list[int]], rows: Sequence[int], device: torch.device) -> tuple[Tensor, Packing, Tensor]:
    """What is read of prompts, of which some may be equal: ids ``[1, T]``, where they stand and, of the cache's
    ``rows``, go to, and each one's last."""
    texts = sorted({tuple(prompt) for prompt in prompts})
    ids, packing, stretches = shared_prefixes.packed(texts, len(prompts) * max(map(len, prompts)), device)
    paths = {text: stretch.path for text, stretch in zip(texts, stretches, strict=True)}
    of = [paths[tuple(prompt)] for prompt in prompts]
    kept = Kept(
        torch.tensor([token for path in of for token in path], device=device),
        torch.tensor([row for row, path in zip(rows, of, strict=True) for _ in path], device=device),
        torch.tensor([position for path in of for position in range(len(path))], device=device),
    )
    return ids, replace(packing, kept=kept), torch.tensor([path[-1] for path in of], device=device)
