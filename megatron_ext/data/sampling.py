"""Which rows make up each optimizer step. They follow from ``(seed, step)`` alone, at every layout."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

_FORGET, _RETAIN, _MIXTURE, _WINDOW, _ALTERNATIVE = range(5)


class Mixture:
    """Batches that hold a fixed share of each source; every source is walked in shuffled passes of its own.

    Shares are exact over time: after ``t`` steps source ``i`` has given ``floor(share_i * batch * t)`` rows (the
    largest source what remains). With ``window`` > 1, the rows of that many steps are sorted by length before they
    are cut into batches, and the batches shuffled, which saves padding.
    """

    def __init__(
        self, sizes: Mapping[str, int], shares: Mapping[str, float], batch: int, window: int, seed: int
    ) -> None:
        self.names = sorted(shares, key=lambda name: (shares[name], name))
        self.sizes = [sizes[name] for name in self.names]
        self.starts = dict(zip(sizes, np.cumsum([0, *sizes.values()]), strict=False))
        self.shares, self.batch, self.window, self.seed = shares, batch, window, seed
        self._window: tuple[int, list[list[int]]] = (-1, [])
        if batch < len(self.names):
            raise ValueError(f"a global batch of {batch} cannot hold a share of each of {len(self.names)} sources")

    def _consumed(self, steps: int) -> list[int]:
        given = [math.floor(self.shares[name] * self.batch * steps + 1e-9) for name in self.names[:-1]]
        return [*given, self.batch * steps - sum(given)]

    def _drawn(self, step: int) -> list[int]:
        rows: list[int] = []
        spans = zip(self._consumed(step), self._consumed(step + 1), strict=True)
        for source, (begin, end) in enumerate(spans):
            size, start = self.sizes[source], int(self.starts[self.names[source]])
            for position in range(begin, end):
                turn, place = divmod(position, size)
                rows.append(start + int(_permutation(size, self.seed, _MIXTURE, source, turn)[place]))
        return rows

    def rows(self, step: int, lengths: np.ndarray) -> list[int]:
        """Row numbers of the global batch of one step; ``lengths``: int ``[rows]``, tokens of each row."""
        if self.window == 1:
            return self._drawn(step)
        number, place = divmod(step, self.window)
        if self._window[0] != number:
            first = number * self.window
            rows = [row for i in range(first, first + self.window) for row in self._drawn(i)]
            rows.sort(key=lambda row: (int(lengths[row]), row))
            cut = [rows[i : i + self.batch] for i in range(0, len(rows), self.batch)]
            order = np.random.default_rng([self.seed, _WINDOW, number]).permutation(len(cut))
            self._window = (number, [cut[i] for i in order])
        return self._window[1][place]


@dataclass(frozen=True)
class ForgetRetainSampler:
    """Batches of forget rows, each beside as many retain rows drawn at random.

    An epoch is one shuffled pass over the forget set; its last batch may be smaller.
    """

    forget: int
    retain: int
    batch: int
    epochs: float
    seed: int

    @property
    def steps_per_epoch(self) -> int:
        return math.ceil(self.forget / self.batch)

    @property
    def steps(self) -> int:
        return max(1, round(self.epochs * self.steps_per_epoch))

    def epoch(self, step: int) -> float:
        """Passes over the forget set that are complete after ``step``."""
        whole, place = divmod(step, self.steps_per_epoch)
        return whole + min(1.0, (place + 1) * self.batch / self.forget)

    def rows(self, step: int) -> tuple[list[int], list[int]]:
        """Forget and retain row numbers of one step."""
        epoch, place = divmod(step, self.steps_per_epoch)
        order = _permutation(self.forget, self.seed, _FORGET, 0, epoch)
        forget = [int(i) for i in order[place * self.batch : (place + 1) * self.batch]]
        if self.retain == 0:
            return forget, []
        draw = np.random.default_rng([self.seed, _RETAIN, step])
        replace = self.retain < len(forget)
        return forget, [int(i) for i in draw.choice(self.retain, size=len(forget), replace=replace)]


@dataclass(frozen=True)
class TopicRoundRobin:
    """Topics in turn: step ``i`` takes the next batch of topic ``i mod n``; the shortest topic ends the run.

    ``limit`` bounds the number of steps. One topic is the plain case.
    """

    topics: tuple[ForgetRetainSampler, ...]
    limit: int | None = None

    @property
    def steps(self) -> int:
        whole = len(self.topics) * min(pairs.steps for pairs in self.topics)
        return whole if self.limit is None else min(whole, self.limit)

    @property
    def steps_per_epoch(self) -> int:
        return len(self.topics) * min(pairs.steps_per_epoch for pairs in self.topics)

    def at(self, step: int) -> tuple[int, int]:
        """(topic, step of that topic)."""
        return step % len(self.topics), step // len(self.topics)

    def epoch(self, step: int) -> float:
        """Passes over its topic's forget set that are complete after ``step``."""
        topic, own = self.at(step)
        return self.topics[topic].epoch(own)

    def ends_epoch(self, step: int) -> bool:
        """Whether ``step`` is the last of a pass over the shortest topic, or of the run."""
        return (step + 1) % self.steps_per_epoch == 0 or step + 1 == self.steps


def alternative(seed: int, step: int, variants: int) -> int:
    """Which of a forget row's ``variants`` alternative answers a step takes."""
    return int(np.random.default_rng([seed, _ALTERNATIVE, step]).integers(variants))


@lru_cache(maxsize=16)
def _permutation(size: int, seed: int, purpose: int, source: int, turn: int) -> np.ndarray:
    return np.random.default_rng([seed, purpose, source, turn]).permutation(size)
