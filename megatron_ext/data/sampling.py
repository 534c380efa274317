"""Which rows make up each optimizer step. They follow from ``(seed, step)`` alone, at every layout."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum
from functools import lru_cache

import numpy as np


class _Stream(IntEnum):
    """What a draw is for: a part of its seed, so that draws for different purposes are independent."""

    FORGET = 0
    RETAIN = 1
    MIXTURE = 2
    WINDOW = 3
    PREFERRED_ANSWER = 4


class Mixture:
    """Batches that hold a fixed share of each source; every source is walked in shuffled passes of its own.

    Shares are exact over time: after ``t`` steps source ``i`` has given ``floor(share_i * batch * t)`` rows (the
    largest source what remains). Where many sources share a small batch, so that what remains could become less from
    one step to the next, each row is of the source that is furthest behind its share.
    """

    def __init__(
        self, sizes: Mapping[str, int], shares: Mapping[str, float], batch: int, window: int, seed: int
    ) -> None:
        """Describe the batches; nothing is drawn yet.

        Args:
            sizes: Rows of each source, in the order of the row numbering.
            shares: Of each source its share of every batch; they sum to 1.
            batch: Rows of a global batch.
            window: Where it is above 1, the rows of that many steps are sorted by length before they are cut into
                batches, and the batches shuffled, which saves padding.
            seed: Of the draws.

        Raises:
            ValueError: A batch has fewer rows than there are sources, or a source has none.
        """
        empty = [name for name in shares if not sizes[name]]
        if empty:
            raise ValueError(f"data: {empty[0]!r} holds no sequence")
        self.names = sorted(shares, key=lambda name: (shares[name], name))
        self.sizes = [sizes[name] for name in self.names]
        self.starts = dict(zip(sizes, np.cumsum([0, *sizes.values()]), strict=False))
        self.shares, self.batch, self.window, self.seed = shares, batch, window, seed
        self._window: tuple[int, list[list[int]]] = (-1, [])
        # Each other source gives less than one row more than its share of a batch.
        self._rest_grows = shares[self.names[-1]] * batch >= len(self.names) - 2
        self._given: list[list[int]] = [[0] * len(self.names)]  # rows of each source by step, where that is no formula
        if batch < len(self.names):
            raise ValueError(f"a global batch of {batch} cannot hold a share of each of {len(self.names)} sources")

    def _consumed(self, steps: int) -> list[int]:
        if self._rest_grows:
            given = [math.floor(self.shares[name] * self.batch * steps + 1e-9) for name in self.names[:-1]]
            return [*given, self.batch * steps - sum(given)]
        while len(self._given) <= steps:
            rows, given = self.batch * len(self._given), list(self._given[-1])
            behind = [self.shares[name] * rows - before for name, before in zip(self.names, given, strict=True)]
            for _ in range(self.batch):
                source = max(range(len(given)), key=behind.__getitem__)
                given[source] += 1
                behind[source] -= 1
            self._given.append(given)
        return self._given[steps]

    def _drawn(self, step: int) -> list[int]:
        rows: list[int] = []
        spans = zip(self._consumed(step), self._consumed(step + 1), strict=True)
        for source, (begin, end) in enumerate(spans):
            size, start = self.sizes[source], int(self.starts[self.names[source]])
            for position in range(begin, end):
                turn, place = divmod(position, size)
                rows.append(start + int(_permutation(size, self.seed, _Stream.MIXTURE, source, turn)[place]))
        return rows

    def rows(self, step: int, lengths: np.ndarray) -> list[int]:
        """Row numbers of the global batch of one step; ``lengths``: int64 ``[rows]``, tokens of each row."""
        if self.window == 1:
            return self._drawn(step)
        number, place = divmod(step, self.window)
        if self._window[0] != number:
            first = number * self.window
            rows = [row for i in range(first, first + self.window) for row in self._drawn(i)]
            rows.sort(key=lambda row: (int(lengths[row]), row))
            cut = [rows[i : i + self.batch] for i in range(0, len(rows), self.batch)]
            order = np.random.default_rng([self.seed, _Stream.WINDOW, number]).permutation(len(cut))
            self._window = (number, [cut[i] for i in order])
        return self._window[1][place]


@dataclass(frozen=True)
class BatchRows:
    """Row numbers of one step's global batch, of the forget set and of the retain set."""

    forget: list[int]
    retain: list[int]


@dataclass(frozen=True)
class ForgetRetainSampler:
    """Batches of forget rows, each beside as many retain rows drawn at random.

    An epoch is one shuffled pass over the forget set; its last batch may be smaller. With ``accumulation`` steps are
    those of transformers' Trainer: a pass is cut into micro-batches of ``batch / accumulation`` rows (those of all GPUs
    together), a step takes the next ``accumulation`` of them, and what a pass leaves over begins the next pass's first
    step. ``epochs`` only counts ``len(micro-batches) // accumulation`` steps each, so that the last rows of the run
    may not be seen.

    Source: transformers 4.45.1, ``Trainer._inner_training_loop``.

    Attributes:
        forget: Rows of the forget set.
        retain: Rows of the retain set; 0 where the method has no retain loss.
        batch: Forget rows of a global batch.
        epochs: Passes over the forget set.
        seed: Of the draws.
        accumulation: Micro-batches of a step where steps are Trainer's; None: the steps of whole passes.
    """

    forget: int
    retain: int
    batch: int
    epochs: float
    seed: int
    accumulation: int | None = None

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps of one pass over the forget set; those that Trainer counts."""
        if self.accumulation is None:
            return math.ceil(self.forget / self.batch)
        return max(1, self._pieces // self.accumulation)

    @property
    def steps(self) -> int:
        """Optimizer steps of all passes: to the nearest whole number and at least one, or as Trainer rounds, up."""
        if self.accumulation is None:
            return max(1, round(self.epochs * self.steps_per_epoch))
        return math.ceil(self.epochs * self.steps_per_epoch)

    def warmup_steps(self, epochs: float) -> int:
        """Steps of a warm-up of so many passes: to the nearest whole number, or as open-unlearning rounds, down."""
        if self.accumulation is None:
            return round(epochs * self.steps_per_epoch)
        return int(epochs * self.forget // self.batch)

    def pass_of(self, step: int) -> int:
        """The pass over the forget set that a step's last rows belong to, from 0."""
        return self._range(step)[-1] // self._pieces

    def trainer_passes(self, step: int) -> tuple[float, ...]:
        """Of each micro-batch of Trainer's step, the passes that Trainer counted when the last pass before it ended.

        It counts at optimizer steps only, so that a pass whose last micro-batches are left over for the next step
        counts as less than one: what waits for the end of a pass may wait one pass more. Empty for other steps.
        """
        if self.accumulation is None:
            return ()
        ends = [taken.stop for taken in _trainer_ranges(self._pieces, self.accumulation, step)]
        counted = []
        for number in self._range(step):
            before = [end for end in ends if end <= number // self._pieces * self._pieces]
            counted.append(before[-1] / self._pieces if before else 0.0)
        return tuple(counted)

    def epoch(self, step: int) -> float:
        """Passes over the forget set that are complete after ``step``."""
        whole, place = divmod(self._range(step)[-1], self._pieces)
        return whole + min(1.0, (place + 1) * self._piece / self.forget)

    def rows(self, step: int) -> BatchRows:
        """The global batch of one step. Retain rows are drawn without replacement where there are enough."""
        forget: list[int] = []
        for number in self._range(step):
            epoch, place = divmod(number, self._pieces)
            order = _permutation(self.forget, self.seed, _Stream.FORGET, 0, epoch)
            forget += [int(i) for i in order[place * self._piece : (place + 1) * self._piece]]
        if self.retain == 0:
            return BatchRows(forget, [])
        draw = np.random.default_rng([self.seed, _Stream.RETAIN, step])
        replace = self.retain < len(forget)
        return BatchRows(forget, [int(i) for i in draw.choice(self.retain, size=len(forget), replace=replace)])

    @property
    def _piece(self) -> int:
        """Rows of a piece of a pass: a batch, or one of Trainer's micro-batches."""
        return self.batch // (self.accumulation or 1)

    @property
    def _pieces(self) -> int:
        """Pieces of a pass."""
        return math.ceil(self.forget / self._piece)

    def _range(self, step: int) -> range:
        """The pieces that a step takes, counted through all passes."""
        if self.accumulation is None:
            return range(step, step + 1)
        return _trainer_ranges(self._pieces, self.accumulation, step + 1)[-1]


@dataclass(frozen=True)
class Turn:
    """Whose turn a step is: the topic's number, and the step's number among those of the topic."""

    topic: int
    step: int


@dataclass(frozen=True)
class TopicRoundRobin:
    """Topics in turn: step ``i`` takes the next batch of topic ``i mod n``; the shortest topic ends the run.

    One topic is the plain case.

    Attributes:
        topics: Each topic's batches.
        limit: Bound on the steps over all topics.
    """

    topics: tuple[ForgetRetainSampler, ...]
    limit: int | None = None

    @property
    def steps(self) -> int:
        """Optimizer steps of the run, over all topics."""
        whole = len(self.topics) * min(topic.steps for topic in self.topics)
        return whole if self.limit is None else min(whole, self.limit)

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps, over all topics, of one pass over the shortest topic's forget set."""
        return len(self.topics) * min(topic.steps_per_epoch for topic in self.topics)

    def warmup_steps(self, epochs: float) -> int:
        """Steps of a warm-up of so many passes."""
        if len(self.topics) == 1:
            return self.topics[0].warmup_steps(epochs)
        return round(epochs * self.steps_per_epoch)

    def turn(self, step: int) -> Turn:
        """Whose turn a step of the run is."""
        return Turn(step % len(self.topics), step // len(self.topics))

    def trainer_passes(self, step: int) -> tuple[float, ...]:
        """As ``ForgetRetainSampler.trainer_passes``; Trainer's steps know no topics in turn."""
        return self.topics[0].trainer_passes(step) if len(self.topics) == 1 else ()

    def epoch(self, step: int) -> float:
        """Passes over its topic's forget set that are complete after ``step``."""
        turn = self.turn(step)
        return self.topics[turn.topic].epoch(turn.step)

    def ends_epoch(self, step: int) -> bool:
        """Whether ``step`` is the last of a pass over the shortest topic, or of the run."""
        return step + 1 == self.steps or self.pass_of(step + 1) > self.pass_of(step)

    def pass_of(self, step: int) -> int:
        """The pass over the shortest topic's forget set that ``step`` belongs to, from 0."""
        return self.topics[0].pass_of(step) if len(self.topics) == 1 else step // self.steps_per_epoch


def preferred_answer(seed: int, step: int, variants: int) -> int:
    """Which of each forget row's ``variants`` preferred answers a topic's own step takes: 0 to ``variants - 1``."""
    return int(np.random.default_rng([seed, _Stream.PREFERRED_ANSWER, step]).integers(variants))


@lru_cache(maxsize=16)
def _trainer_ranges(pieces: int, accumulation: int, steps: int) -> list[range]:
    """Micro-batches of Trainer's first steps. It also steps at the end of a pass that has no more than a step takes."""
    ranges: list[range] = []
    begin = end = 0
    while len(ranges) < steps:
        end += 1
        if end % accumulation == 0 or (pieces <= accumulation and end % pieces == 0):
            ranges.append(range(begin, end))
            begin = end
    return ranges


@lru_cache(maxsize=16)
def _permutation(size: int, seed: int, purpose: int, source: int, turn: int) -> np.ndarray:
    return np.random.default_rng([seed, purpose, source, turn]).permutation(size)
