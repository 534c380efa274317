"""Files of benchmark text: fetched from the hub, or a local folder of the same files."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.data import user_files
from pipeline.data.errors import DataError
from pipeline.data.prepared import Names
from pipeline.data.settings import FetchedSource, FolderSource, LocalSource

# The last is what the hub's own tools write of a split that fits one file.
SUFFIXES = (".json", ".jsonl", "-00000-of-00001.parquet")


@dataclass(frozen=True)
class Files:
    """What files hold. A file that may have several names is known by the first of them.

    Attributes:
        values: by file its JSON values, each after what to call it in a message
        origins: by file what to call it in a message
        digests: by file its SHA-256
        source: where the files came from, for the manifest
    """

    values: dict[str, list[tuple[str, Any]]]
    origins: dict[str, str]
    digests: dict[str, str]
    source: dict[str, Any]


def find(folder: Path, names: Names) -> Path | None:
    """The file of one of these names in a folder, or ``None``."""
    paths = (folder / f"{name}{suffix}" for name in names for suffix in SUFFIXES)
    return next((path for path in paths if path.is_file()), None)


def doubled(folder: Path, names: Names) -> str | None:
    """What to say where two files of a folder have one of these names; ``None`` where at most one has each."""
    for name in names:
        found = [f"{name}{suffix}" for suffix in SUFFIXES if (folder / f"{name}{suffix}").is_file()]
        if len(found) > 1:
            return f"{folder} has both {' and '.join(found)}: remove the one that is not meant"
    return None


def read(source: LocalSource, wanted: Sequence[Names]) -> Files:
    """Read the files of ``wanted``.

    Raises:
        DataError: a file is missing, unreadable, or not what was fetched, or the source is a generator
    """
    if isinstance(source, FetchedSource):
        return _fetched(source, wanted)
    if isinstance(source, FolderSource):
        return _folder(source, wanted)
    raise DataError(f"source.kind: {source.kind!r} has no files; allowed: fetched, folder")


def _folder(source: FolderSource, wanted: Sequence[Names]) -> Files:
    folder = Path(source.path)
    if not folder.is_dir():
        raise DataError(f"source.path: {folder} is not a folder")
    values, origins, digests = {}, {}, {}
    for names in wanted:
        file = find(folder, names)
        if file is None:
            raise DataError(f"source.path: {folder} has neither {either(names)}")
        twice = doubled(folder, names)
        if twice:
            raise DataError(f"source.path: {twice}")
        content = user_files.content_of(file)
        values[names[0]] = list(user_files.values(content, file))
        origins[names[0]], digests[names[0]] = str(file), hashlib.sha256(content).hexdigest()
    return Files(values, origins, digests, {"kind": "folder", "path": str(folder), "files_sha256": digests})


def either(names: Names) -> str:
    """The names of the files that may stand for one, for a message."""
    return " nor ".join(name + suffix for name in names for suffix in SUFFIXES)


def _fetched(source: FetchedSource, wanted: Sequence[Names]) -> Files:
    """What the fetch step brought; ``manifest.json`` says from where, and what the files must hold."""
    path = source.path / "manifest.json"
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        recorded = {key: manifest[key] for key in ("kind", "repository", "requested_revision", "revision")}
        digests = dict(manifest["files_sha256"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise DataError(f"source.path: {path} is not what the fetch step writes ({error!r}): fetch again") from error
    folder = source.path / "files"
    found = _folder(FolderSource(path=folder), wanted)
    for name, digest in found.digests.items():
        if digests.get(Path(found.origins[name]).relative_to(folder).as_posix()) != digest:
            raise DataError(f"source.path: {found.origins[name]} is not the file that was fetched: fetch again")
    origins = {name: f"{recorded['repository']}@{recorded['revision'][:12]}, {name}" for name in found.values}
    return Files(found.values, origins, found.digests, {**recorded, "files_sha256": found.digests})


def field(value: Any, name: str, kind: type, place: str) -> Any:
    """The entry ``name`` of a row.

    Args:
        value: the row
        name: the entry's key
        kind: ``str``, ``int`` or ``list``
        place: what to call the row in a message

    Raises:
        DataError: the row is no object, or the entry is missing or of another kind
    """
    if not isinstance(value, dict):
        raise DataError(f"{place}: expected an object, got {type(value).__name__}")
    if name not in value:
        raise DataError(f"{place}: field {name!r} is missing; the row has {', '.join(sorted(value))}")
    if not isinstance(value[name], kind):
        wanted = {list: "a list", str: "a text", int: "a whole number"}[kind]
        raise DataError(f"{place}: field {name!r} must be {wanted}, got {type(value[name]).__name__}")
    return value[name]
