"""One loss over its rows of a global batch: what an optimizer step takes gradients of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from megatron_ext.data.collate import SequenceDataset
from megatron_ext.distributed.process_groups import Ranks
from megatron_ext.losses import Loss


@dataclass(frozen=True)
class LossTerm:
    """One loss over its rows of the global batch.

    Attributes:
        name: What the step log and errors call it.
        loss: The loss.
        dataset: The sequences that ``rows`` number.
        rows: The global batch's rows, over all ranks.
        preferred_rows: The row of each row's preferred answer, for losses that need one.
        topic: The name of the batch's topic.
    """

    name: str
    loss: Loss
    dataset: SequenceDataset
    rows: Sequence[int]
    preferred_rows: Mapping[int, int] | None = None
    topic: str = ""

    @property
    def units(self) -> float:
        """What the mean is over: units of the global batch.

        Raises:
            ValueError: There are none.
        """
        rows = list(self.rows)
        labels = self.dataset.label_counts[rows]
        units = self.loss.units(labels, self.dataset.lengths[rows])
        if units < 1:
            raise ValueError(
                f"{self.name}: {self.loss.name!r} has nothing to average over in a batch of {len(rows)} sequences with "
                f"at most {labels.max(initial=0)} labelled tokens each"
            )
        return units

    def units_of(self, rows: Sequence[int]) -> float:
        """Units of one micro-batch; -1 stands for a row that only fills it."""
        real = [row for row in rows if row >= 0]
        return self.loss.units(self.dataset.label_counts[real], self.dataset.lengths[real])

    @property
    def tokens(self) -> int:
        """Tokens of the global batch, prompts included, and of the preferred answers, each with its prompt."""
        return int(self.dataset.lengths[[*self.rows, *self._preferred()]].sum())

    @property
    def longest(self) -> int:
        """Tokens of the longest sequence."""
        return int(self.dataset.lengths[[*self.rows, *self._preferred()]].max())

    def _preferred(self) -> Sequence[int]:
        """The rows of the preferred answers, where a loss reads them."""
        return list((self.preferred_rows or {}).values())

    def micro_batches(
        self, size: int, ranks: Ranks, tokens: int | None = None, packed: bool = False
    ) -> list[list[int]]:
        """This data-parallel rank's rows, micro-batch by micro-batch; see ``SequenceDataset.micro_batches``.

        In each of them the preferred answers follow the rows that they belong to, in the same order. -1 fills up.
        """
        batches = self.dataset.micro_batches(
            self.rows, size, ranks.data_rank, ranks.layout.data, tokens, packed, self.preferred_rows
        )
        if self.preferred_rows is None:
            return batches
        return [[*rows, *(self.preferred_rows.get(row, -1) for row in rows)] for rows in batches]
