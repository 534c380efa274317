"""A user's own benchmark files and checkpoint folders, which must be complete before a workflow starts."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from megatron_ext.checkpoint.model_files import read_object
from megatron_ext.checkpoint.tokenizer_files import TOKENIZER_FILES
from pipeline.data.prepared import Names
from pipeline.data.sources import doubled, either, find

# Of a checkpoint's repository: weights, configuration and tokenizer.
WANTED = ("*.safetensors", "*.json", *(name for name in TOKENIZER_FILES if not name.endswith(".json")))
# Copies of the weights under other names, and folders, which hold other formats.
UNWANTED = ("consolidated*", "*/*")


def missing_data(folder: Path, wanted: Sequence[Names]) -> list[str]:
    """What a folder of a benchmark's files lacks or has twice, a message for each file."""
    if not folder.is_dir():
        return [f"{str(folder)!r} is not a folder"]
    lacking = [f"{str(folder)!r} has neither {either(names)}" for names in wanted if find(folder, names) is None]
    return lacking + [message for names in wanted if (message := doubled(folder, names))]


def data_files(folder: Path, wanted: Sequence[Names]) -> list[Path]:
    """The files of a benchmark's folder that are read."""
    return [file for names in wanted if (file := find(folder, names)) is not None]


def model_files(folder: Path) -> list[Path]:
    """The files of a checkpoint folder that are taken into an experiment: weights, config and tokenizer."""
    found = {file for pattern in WANTED for file in folder.glob(pattern)}
    return sorted(file for file in found if not any(fnmatch(file.name, pattern) for pattern in UNWANTED))


def architecture(folder: Path) -> dict[str, Any] | None:
    """The ``config.json`` of a checkpoint folder; ``None`` where it is missing or not an object."""
    try:
        return read_object(folder / "config.json")
    except (OSError, ValueError):
        return None
