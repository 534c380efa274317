"""Tokenised splits kept by content: what has been tokenised once is copied, after its checksums are verified."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import shutil
import sys
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import Any

from megatron_ext.atomic_files import Unreadable, copy, new_folder, read_bytes
from megatron_ext.checkpoint import tokenizer_files
from megatron_ext.data import sequences
from pipeline.data.errors import printable

FOLDERS = ("train", "evaluation", "tokenizer")
MANIFEST = "manifest.json"


def key(**parts: Any) -> str:
    """The name of an entry.

    Args:
        **parts: JSON values that decide its content

    Returns:
        a digest of the parts, of the code that turns them into files, and of the tokenizers library's version
    """
    parts["code"] = code_digest()
    parts["tokenizers"] = importlib.metadata.version("tokenizers")
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]


def code_digest() -> str:
    """SHA-256 of ``code_files``, so that code that has changed never meets an entry of the code before."""
    total = hashlib.sha256()
    for file in code_files():
        total.update(f"{file.name}\n{sha256(file)}\n".encode())
    return total.hexdigest()


def code_files() -> list[Path]:
    """The sources that decide what becomes of a benchmark's text."""
    here = Path(__file__).parent
    return [
        *sorted(here.glob("*.py")),
        here.parent / "benchmarks" / "refusals.py",
        here.parent / "benchmarks" / "request_sets.py",
        *sorted((here.parent / "benchmarks").glob("*/*.py")),
        here.parent / "steps" / "prepare.py",
        Path(sequences.__file__),
        Path(tokenizer_files.__file__),
    ]


def fetch(cache: Path, key: str, folder: Path) -> dict[str, Any] | None:
    """Copy an entry's files into ``folder`` and return its manifest, or ``None`` where there is none, or it is damaged
    or cannot be read, which is said on standard error.

    A damaged entry is removed; one that cannot be read stays. Others may write into a shared cache: a name that leaves
    the entry, a link and what is no file are damage too.

    Raises:
        OSError: ``folder`` cannot be written.
    """
    entry = cache / key
    if not entry.exists() and not entry.is_symlink():
        return None
    try:
        return _copied(entry, folder)
    except Unreadable as error:
        print(printable(f"prepare: cache entry {entry} cannot be read ({error}): making it again"), file=sys.stderr)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        print(printable(f"prepare: cache entry {entry} is damaged ({error}): making it again"), file=sys.stderr)
        _remove(entry)
    for name in FOLDERS:
        if (folder / name).exists():
            shutil.rmtree(folder / name)
    return None


def _copied(entry: Path, folder: Path) -> dict[str, Any]:
    """Copy an entry's files into ``folder``; its manifest. Raises ``Unreadable``, or another error for damage."""
    _own(entry, MANIFEST)
    manifest: dict[str, Any] = json.loads(read_bytes(entry / MANIFEST))
    for name in FOLDERS:
        (folder / name).mkdir(parents=True, exist_ok=True)
    for name, wanted in manifest["files"].items():
        _own(entry, name)
        if PurePosixPath(name).parts[0] not in FOLDERS:
            raise ValueError(f"{name!r} is in none of {', '.join(FOLDERS)}")
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        if copy(entry / name, folder / name) != wanted:
            raise ValueError(f"{name} is not the file that was written")
    return manifest


def _own(entry: Path, name: str) -> None:
    """Raises ``ValueError`` unless ``name`` is a file of the entry itself, on the way to which no link lies."""
    parts = PurePosixPath(name).parts
    if not parts or "/".join(parts) != name or name.startswith("/") or ".." in parts:
        raise ValueError(f"{name!r} is no name of a file in it")
    try:
        link = next((size for size in range(len(parts) + 1) if entry.joinpath(*parts[:size]).is_symlink()), None)
        is_file = (entry / name).is_file()
    except OSError as error:
        raise Unreadable(error) from error
    if link is not None:
        raise ValueError(f"{'/'.join(parts[:link]) or 'the entry'!r} is a link")
    if not is_file:
        raise ValueError(f"{name!r} is no file")


def _remove(entry: Path) -> None:
    """Remove an entry as far as that is allowed."""
    if entry.is_symlink() or not entry.is_dir():
        with suppress(OSError):
            entry.unlink()
    else:
        shutil.rmtree(entry, ignore_errors=True)


def store(cache: Path, key: str, folder: Path, manifest: dict[str, Any]) -> None:
    """Copy the files that ``manifest`` lists under ``cache / key``, in one rename; an entry already there is kept."""
    cache.mkdir(parents=True, exist_ok=True)
    temporary = new_folder(cache / key)
    try:
        for name in manifest["files"]:
            (temporary / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(folder / name, temporary / name)
        (temporary / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
        if not (cache / key).exists():
            os.rename(temporary, cache / key)
    except OSError:
        # Another run may have renamed its equal entry into place since the check above.
        if not (cache / key).is_dir():
            raise
    finally:
        if temporary.exists():
            shutil.rmtree(temporary)


def sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
