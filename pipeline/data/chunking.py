"""Long texts cut into sequences."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from megatron_ext.data.sequences import Sequences
    from pipeline.data.tokenizer import Tokenizer


BETWEEN = "\n\n"  # stands between texts, as in open-unlearning's PretrainingDataset


def chunks(texts: Sequence[str], tokenizer: Tokenizer, max_length: int) -> Sequences:
    """Join texts by blank lines, and cut the whole into sequences.

    Cuts may fall inside a text or a word. The last sequence is what is left over: open-unlearning leaves it short, too,
    while MUSE's code fills it up from the start of the corpus.

    Args:
        texts: the texts, in their order
        tokenizer: what cuts them into tokens
        max_length: tokens of a sequence at most, start token included

    Returns:
        sequences in which every token but the first is labelled
    """
    from megatron_ext.data.sequences import Sequences

    start = tokenizer.encode("", special=True)
    ids = tokenizer.encode(BETWEEN.join(texts), special=False)
    size = max_length - len(start)
    pieces = [start + ids[first : first + size] for first in range(0, len(ids), size)]
    return Sequences.pack((piece, 1) for piece in pieces if len(piece) > 1)
