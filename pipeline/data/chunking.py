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


def pieces(text: str, tokenizer: Tokenizer, max_length: int) -> list[tuple[list[int], int]]:
    """Cut one text into sequences, the last of which ends with the end token, so that nothing of it is lost.

    Every token is labelled in exactly one sequence, but for the text's first one where the tokenizer has no start
    token. Without a start token, a further sequence begins with the last token of the one before it.

    Args:
        text: the text
        tokenizer: what cuts it into tokens
        max_length: tokens of a sequence at most

    Returns:
        ids of each sequence, and how many of them at the start are not labelled
    """
    own = tokenizer.encode("", special=True)
    ids = [*tokenizer.encode(text, special=False), tokenizer.eos_id]
    before, rest = (own, ids) if own else (ids[:1], ids[1:])
    size = max_length - len(before)
    cut = []
    for first in range(0, len(rest), size):
        part = rest[first : first + size]
        cut.append((before + part, len(before)))
        before = own or part[-1:]
    return cut
