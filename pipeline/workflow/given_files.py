"""What the files that a user gives hold, so that another one under the same name shows whatever its time is.

Snakemake itself sees newer files only. A file that was moved there, or copied with its times, may well be older.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from functools import cache
from pathlib import Path

READ = 2**25  # bytes up to which a file is told by its content, and otherwise by its size and time


def fingerprint(paths: Iterable[Path]) -> str:
    """A digest of files and of what lies in folders, behind links too; empty where there are no paths.

    A copy with the same times has the same one.
    """
    total, any_path = hashlib.sha256(), False
    for path in sorted(set(paths)):
        any_path = True
        for file in _files(path):
            total.update(f"{file} {_told(file)}\n".encode(errors="surrogateescape"))
    return total.hexdigest() if any_path else ""


def _files(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    return sorted(Path(folder, name) for folder, _, names in os.walk(path) for name in names)


def _told(file: Path) -> str:
    """What tells a file from another; that it cannot be read is said by the step that reads it."""
    try:
        found = file.stat()
        if found.st_size > READ:
            return f"{found.st_size} {found.st_mtime_ns}"
        return _content(file, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)
    except OSError:
        return "none"


@cache
def _content(file: Path, *_: int) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()
