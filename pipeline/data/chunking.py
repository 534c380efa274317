"""Long texts cut into sequences."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from megatron_ext.data.sequences import Sequences
    from pipeline.data.tokenizer import Tokenizer


BETWEEN = "\n\n"  # texts that are cut together, as open-unlearning's PretrainingDataset joins them


def chunks(texts: Sequence[str], tokenizer: Tokenizer, max_length: int) -> Sequences:
    """``texts`` joined by blank lines and cut into sequences of at most ``max_length`` tokens, start token included.

    Every token but the first of a sequence is labelled. Cuts fall where they fall; the last sequence is what is left
    over (MUSE's code fills it up from the start of the corpus, open-unlearning's leaves it short).
    """
    from megatron_ext.data.sequences import Sequences

    start = tokenizer.encode("", special=True)
    ids = tokenizer.encode(BETWEEN.join(texts), special=False)
    size = max_length - len(start)
    pieces = [start + ids[first : first + size] for first in range(0, len(ids), size)]
    return Sequences.pack((piece, 1) for piece in pieces if len(piece) > 1)
