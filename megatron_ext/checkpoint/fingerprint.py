"""Telling checkpoints apart without reading all of them."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from megatron_ext.checkpoint.model_files import MOST_BYTES, check_folder

SAMPLE = 4096


def model_fingerprint(folder: Path) -> str:
    """A sha256 of a checkpoint's ``config.json`` and weights: of each safetensors file its name, its size, its header
    and the first 4 KiB of every tensor. Training changes every tensor everywhere, so another training shows; an edit of
    single values further on does not.

    Raises ``FileNotFoundError`` for a folder without config or safetensors files, and ``ValueError`` for one of which a
    link leads out, or a file that is not what its name says.
    """
    folder = Path(folder)
    check_folder(folder)
    digest = hashlib.sha256((folder / "config.json").read_bytes())
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise FileNotFoundError(f"{folder} has no safetensors files")
    for path in files:
        digest.update(f"\n{path.name} {path.stat().st_size}\n".encode())
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = file.read(min(length, MOST_BYTES))
            digest.update(header)
            start = 8 + len(header)
            for begin, end in _places(path, header):
                file.seek(start + begin)
                digest.update(file.read(min(SAMPLE, end - begin)))
    return digest.hexdigest()


def _places(path: Path, header: bytes) -> list[tuple[int, int]]:
    """Where the tensors of a safetensors file lie in its data, from its header."""
    try:
        tensors = {name: entry for name, entry in json.loads(header).items() if name != "__metadata__"}
        places = sorted((int(begin), int(end)) for begin, end in (each["data_offsets"] for each in tensors.values()))
        if all(0 <= begin <= end for begin, end in places):
            return places
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        pass
    raise ValueError(f"{path}: is not a safetensors file")
