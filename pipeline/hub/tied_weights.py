"""Whether a checkpoint whose config ties output and input embedding has an output layer of its own all the same."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from megatron_ext.model.families import known

INPUT, OUTPUT = "model.embed_tokens.weight", "lm_head.weight"
AT_ONCE = 16 * 2**20  # bytes

Headers = Mapping[Path, Mapping[str, Mapping[str, Any]]]


def own_output(config: Mapping[str, Any], headers: Headers) -> bool:
    """Whether the config says tied, and the files have an output layer that differs from the embedding.

    transformers uses such a layer. Here it would be left out of the model, and of what is written.

    Args:
        config: The model's ``config.json``.
        headers: By file of weights, the entries of its header.
    """
    names: Any = config.get("architectures")
    families = known()
    named = [name for name in names if isinstance(name, str)] if isinstance(names, list) else []
    family = next((families[name] for name in named if name in families), None)
    if family is None or not family.is_tied(config):
        return False
    places = [
        [(file, entries[name]) for file, entries in headers.items() if name in entries] for name in (INPUT, OUTPUT)
    ]
    if not all(places):
        return False
    (file, entry), (other, own) = places[0][0], places[1][0]
    if (entry["dtype"], entry["shape"]) != (own["dtype"], own["shape"]):
        return True
    with file.open("rb") as first, other.open("rb") as second:
        sizes = [_go_to(stream, place["data_offsets"]) for stream, place in ((first, entry), (second, own))]
        for start in range(0, sizes[0], AT_ONCE):
            length = min(AT_ONCE, sizes[0] - start)
            if first.read(length) != second.read(length):
                return True
    return False


def _go_to(stream: BinaryIO, place: Sequence[int]) -> int:
    """Put an open file of weights to where a tensor begins; returns the tensor's bytes."""
    stream.seek(8 + int.from_bytes(stream.read(8), "little") + place[0])
    return place[1] - place[0]
