"""Files that appear whole or not at all: written under a temporary name, then renamed.

A temporary name cannot be guessed and is always a new one, so that nobody can have put a link there, which would be
followed. Modes are what the umask leaves of 0666 and 0777.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, BinaryIO

TEMPORARY = re.compile(r"\..+\.[0-9a-f]{16}")
CHUNK = 2**22  # bytes that are copied at a time


class Unreadable(Exception):
    """A file could not be read; that says nothing about what is in it."""


def temporary_name(path: Path) -> Path:
    """A hidden name beside ``path`` that nothing has and that nobody can guess."""
    return path.with_name(f".{path.name}.{secrets.token_hex(8)}")


def sync(path: Path) -> None:
    """Have a file's content on disk, or the names that a folder has; not every file system knows of folders."""
    opened = os.open(path, os.O_RDONLY)
    try:
        os.fsync(opened)
    except OSError as error:
        if not path.is_dir() or error.errno not in (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EBADF):
            raise
    finally:
        os.close(opened)


def remove_leftovers(folder: Path) -> None:
    """Remove what writers that were killed, or whose disk failed, have left below ``folder`` under temporary names.

    Nobody else may be writing there.
    """
    for path in [path for path in folder.rglob(".*") if TEMPORARY.fullmatch(path.name)]:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def new_folder(path: Path) -> Path:
    """A new folder beside ``path``, to be renamed to it."""
    folder = temporary_name(path)
    folder.mkdir(parents=True)
    return folder


def copy(source: Path, target: Path) -> str:
    """Copy a file to a name that may be seen before it is whole.

    Returns:
        The SHA-256 of what was copied.

    Raises:
        Unreadable: ``source`` cannot be read.
        OSError: ``target`` cannot be written: its disk is full, for example.
    """
    digest = hashlib.sha256()
    with ExitStack() as opened:
        try:
            read = opened.enter_context(source.open("rb"))
        except OSError as error:
            raise Unreadable(error) from error
        written = opened.enter_context(target.open("wb"))
        while True:
            try:
                chunk = read.read(CHUNK)
            except OSError as error:
                raise Unreadable(error) from error
            if not chunk:
                return digest.hexdigest()
            digest.update(chunk)
            written.write(chunk)


def read_bytes(path: Path) -> bytes:
    """What a file holds; raises ``Unreadable`` where it cannot be read."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise Unreadable(error) from error


@contextmanager
def replacing_file(path: Path) -> Iterator[BinaryIO]:
    """A new file to write to, which gets the name ``path`` at the end; makes its folder. After an error it is gone."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_name(path)
    handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o666)
    try:
        with open(handle, "wb") as file:
            yield file
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_text(path: Path, text: str) -> None:
    """Replace ``path`` by ``text`` (UTF-8, as it is) in one step; makes its folder."""
    with replacing_file(path) as file:
        file.write(text.encode())


def write_json(path: Path, value: Any) -> None:
    """Replace ``path`` by an indented JSON document; raises ``ValueError`` for NaN or an infinity, which JSON lacks."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")
