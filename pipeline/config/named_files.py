"""Files that configuration files name: by a name that is known here, or by a path."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from pipeline.config.located_yaml import Document, Key

CONFIGS = Path(__file__).resolve().parents[2] / "workflow_configs"
ENDINGS = (".yaml", ".yml")  # what names a file by its path
# By kind of file: the keys whose values are paths of files and folders; ``*`` stands for any key.
PATHS: dict[str, tuple[str, ...]] = {
    "experiment": (
        *("model.path", "model.adapter", "benchmark.source.path"),
        *("benchmark.options.include_path", "evaluation.options.include_path"),
        *("utility.*.source.path", "utility.*.options.include_path"),
    ),
    "model": tuple(
        f"checkpoints.{which}.{what}" for which in ("base", "target", "retrain.*") for what in ("folder", "adapter")
    ),
    "benchmark": ("source.path", "options.include_path"),
}


def is_path(name: str) -> bool:
    """Whether a file is named by its path."""
    return name.endswith(ENDINGS)


def beside(file: Path, name: str) -> Path:
    """The file or folder that another file names.

    Args:
        file: The file that names it.
        name: Its path. A relative one starts at the folder of ``file``. Where nothing is there, and something is at the
            working directory or in ``workflow_configs``, it stays as it is.
    """
    path = Path(name).expanduser()
    found = Path(os.path.normpath(file.absolute().parent / path))
    elsewhere = path.exists() or (CONFIGS / path).exists()
    return path if elsewhere and not found.exists() else found


def placed(kind: str, document: Document) -> Document:
    """A document whose relative paths are made absolute, so that they mean the same wherever the command is given.

    Args:
        kind: What the document holds: a key of ``PATHS``, or a kind without paths.
        document: The document, which is left as it is.
    """
    for pattern in PATHS.get(kind, ()):
        parts = pattern.split(".")
        for key in [key for key in document.marks if _matches(key, parts)]:
            value = document.at(*key).data
            if isinstance(value, str):
                path = str(beside(document.mark(key).file, value))
                document = Document(_with(document.data, key, path), document.marks)
    return document


def _matches(key: Key, parts: list[str]) -> bool:
    return len(key) == len(parts) and all(part in ("*", name) for part, name in zip(parts, key, strict=True))


def _with(data: Any, key: Key, value: object) -> Any:
    if not key:
        return value
    if isinstance(data, list):
        return [_with(inner, key[1:], value) if place == key[0] else inner for place, inner in enumerate(data)]
    return {**data, key[0]: _with(data[key[0]], key[1:], value)}
