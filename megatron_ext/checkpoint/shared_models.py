"""Trained models that several experiments share.

What has been trained once, by the same code, on the same data and with the same settings, is copied in place of being
trained again. Equal runs give equal bits, so nothing else changes. Imports neither torch nor megatron-core.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

from megatron_ext.atomic_files import Unreadable, copy, new_folder, read_bytes
from megatron_ext.checkpoint.identity import code, versions
from megatron_ext.checkpoint.tokenizer_files import TOKENIZER_FILES

STEPS = "steps.jsonl"
FILES = "files.json"  # of an entry: the SHA-256 of each file, and when it was trained


def key(**parts: Any) -> str:
    """The name of a model: a digest of JSON values that decide its weights, of this package's code, and of the versions
    of the packages that compute them."""
    parts["code"] = code()
    parts["versions"] = versions()
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]


def tokenizer_digests(folder: Path | None) -> dict[str, str]:
    """SHA-256 of each of the files that go from a folder into a trained model's; none where there is no folder."""
    if folder is None:
        return {}
    files = (folder / name for name in (*TOKENIZER_FILES, "generation_config.json"))
    return {file.name: _sha256(file) for file in files if file.is_file()}


def fetch(shared: Path, name: str, output: Path) -> dict[str, Any] | None:
    """Copy a model and its step log into a run's output.

    Args:
        shared: The folder of models.
        name: The model's ``key``.
        output: Gets ``checkpoint/`` and ``steps.jsonl``.

    Returns:
        The facts that it was stored with; ``None`` where there is none, or it cannot be read, or it is not as it was
        stored. The last two are said on standard error; what is not as it was stored is removed.

    Raises:
        OSError: The output cannot be written.
    """
    entry = shared / name
    if not entry.is_dir() or entry.is_symlink():
        return None
    partial = new_folder(output / "checkpoint")
    try:
        facts = _copied(entry, partial)
        os.replace(partial / STEPS, output / STEPS)
        shutil.rmtree(output / "checkpoint", ignore_errors=True)
        os.replace(partial, output / "checkpoint")
        return facts
    except Unreadable as error:
        print(f"shared model {entry} cannot be read ({error}): training it again", file=sys.stderr)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        print(f"shared model {entry} is damaged ({error}): training it again", file=sys.stderr)
        shutil.rmtree(entry, ignore_errors=True)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return None


def _copied(entry: Path, folder: Path) -> dict[str, Any]:
    """Copy an entry's files into a folder; the facts that it was stored with."""
    if not _is_file(entry / FILES):
        raise ValueError(f"it has no {FILES}")
    record = json.loads(read_bytes(entry / FILES))
    if STEPS not in record["files"]:
        raise ValueError(f"{FILES} does not name {STEPS}")
    for name, digest in record["files"].items():
        source = entry / name
        if Path(name).name != name or source.is_symlink() or not _is_file(source):
            raise ValueError(f"{name!r} is no file of its own")
        if copy(source, folder / name) != digest:
            raise ValueError(f"{name} is not the file that was stored")
    return dict(record["facts"])


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError as error:
        raise Unreadable(error) from error


def store(shared: Path, name: str, output: Path, facts: dict[str, Any]) -> None:
    """Keep a run's model and step log for others, in one rename; one that is there already stays.

    Args:
        shared: The folder of models.
        name: The model's ``key``.
        output: Holds ``checkpoint/`` and ``steps.jsonl``.
        facts: What ``fetch`` gives back.
    """
    entry = shared / name
    if entry.exists():
        return
    partial = new_folder(entry)
    try:
        for file in (*sorted((output / "checkpoint").iterdir()), output / STEPS):
            shutil.copyfile(file, partial / file.name)
        record = {"facts": facts, "files": {file.name: _sha256(file) for file in sorted(partial.iterdir())}}
        (partial / FILES).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
        os.rename(partial, entry)
    except OSError:
        if not entry.is_dir():  # else another run has stored its equal model since
            raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
