"""What must already be on disk before a workflow starts: benchmark files and checkpoint folders of the user's own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pipeline.data.sources import SUFFIXES, split_names


def missing_data(folder: Path, split: str) -> list[str]:
    """What a folder of a benchmark's files lacks for a forget split."""
    if not folder.is_dir():
        return [f"{str(folder)!r} is not a folder"]
    return [
        f"{str(folder)!r} has neither {' nor '.join(name + suffix for suffix in SUFFIXES)}"
        for name in split_names(split)
        if split_file(folder, name) is None
    ]


def split_file(folder: Path, split: str) -> Path | None:
    return next((folder / f"{split}{s}" for s in SUFFIXES if (folder / f"{split}{s}").is_file()), None)


def split_rows(folder: Path, split: str) -> int:
    """Rows of a split's file: its lines that are not blank."""
    path = split_file(folder, split)
    if path is None:
        return 0
    with path.open("rb") as lines:
        return sum(bool(line.strip()) for line in lines)


def missing_model_files(folder: Path) -> str | None:
    """What keeps ``folder`` from being a Hugging Face checkpoint with its tokenizer, or ``None``."""
    if not folder.is_dir():
        return "is not a folder"
    if not (folder / "config.json").is_file():
        return "has no config.json"
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        lacking = [name for name in names if not (folder / name).is_file()]
        if lacking:
            return f"lacks {', '.join(lacking)}, which {index.name} names"
    elif not any(folder.glob("*.safetensors")):
        return "has no *.safetensors file"
    if not any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer.model", "vocab.json")):
        return "has no tokenizer file (tokenizer.json, tokenizer.model or vocab.json)"
    return None


def architecture(folder: Path) -> dict[str, Any] | None:
    """The ``config.json`` of a checkpoint folder; ``None`` where it is missing or not an object."""
    try:
        found = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None
