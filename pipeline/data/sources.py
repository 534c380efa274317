"""Where benchmark text comes from: files fetched from the hub, a local folder of such files, or our own generator.

All three give the same named splits, so that nothing after this module asks where a row came from.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pipeline.data import synthetic
from pipeline.data.rows import DataError, Row, Splits
from pipeline.data.splits import RETAIN_SPLITS, SUFFIXES, split_file, split_names
from pipeline.specs import DataSource, FetchedSource, FolderSource, LocalSource, SyntheticSource

ALTERNATIVES = "idk"  # the forget set's prompts with refusals for answers


def load(source: LocalSource, forget_split: str) -> Splits:
    """Read or make the splits that preparing ``forget_split`` needs, by TOFU's names.

    Raises ``DataError`` for an unknown split, a missing file, one that is not what was fetched, or an unreadable row.
    """
    if forget_split not in RETAIN_SPLITS:
        raise DataError(f"forget_split: {forget_split!r} is not one of {', '.join(RETAIN_SPLITS)}")
    names = split_names(forget_split)
    if isinstance(source, FolderSource):
        return _folder(source, names)
    if isinstance(source, FetchedSource):
        return _fetched(source, names)
    return synthetic.generate(source, forget_split, RETAIN_SPLITS[forget_split])


def training_sets(source: DataSource) -> list[str]:
    """The tokenised sets that a model may be trained on."""
    names = ["full", "retain", "forget"]
    if isinstance(source, SyntheticSource):
        names += ["background"] if source.background_authors else []
        names += ["full_rephrased", "retain_rephrased"]
    return [*names, "general"]


def tokenised_sets(source: DataSource) -> list[str]:
    """All tokenised sets that preparing ``source`` writes: those for training, then the alternative answers."""
    return [*training_sets(source), ALTERNATIVES]


def _folder(source: FolderSource, names: list[str]) -> Splits:
    folder = Path(source.path)
    if not folder.is_dir():
        raise DataError(f"source.path: {folder} is not a folder")
    rows, origins, digests = {}, {}, {}
    for name in names:
        file = split_file(folder, name)
        if file is None:
            raise DataError(f"source.path: {folder} has neither {' nor '.join(name + suffix for suffix in SUFFIXES)}")
        content = file.read_bytes()
        rows[name] = [_row(value, name, f"{file}, row {i}") for i, value in _lines(content, file)]
        origins[name], digests[name] = str(file), hashlib.sha256(content).hexdigest()
    return Splits(rows, origins, {"kind": "folder", "path": str(folder), "files_sha256": digests})


def _lines(content: bytes, file: Path) -> Iterable[tuple[int, Any]]:
    """The JSON values of a file of one value a line, counted from 0; blank lines are skipped."""
    index = 0
    for number, line in enumerate(content.split(b"\n"), 1):
        if not line.strip():
            continue
        try:
            yield index, json.loads(line)
        except ValueError as error:
            raise DataError(f"{file}, line {number}: not a JSON object on one line ({error})") from error
        index += 1


def _fetched(source: FetchedSource, names: list[str]) -> Splits:
    """What the fetch step brought; ``manifest.json`` says from where, and what the files must hold."""
    path = source.path / "manifest.json"
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        recorded = {key: manifest[key] for key in ("kind", "repository", "requested_revision", "revision")}
        digests = dict(manifest["files_sha256"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"source.path: {path} is not what the fetch step writes ({error!r}): fetch again") from error
    splits = _folder(FolderSource(path=source.path / "files"), names)
    found = splits.source["files_sha256"]
    for name in names:
        file = Path(splits.origins[name]).name
        if digests.get(file) != found[name]:
            raise DataError(f"source.path: {splits.origins[name]} is not the file that was fetched: fetch again")
    origins = {name: f"{recorded['repository']}@{recorded['revision'][:12]}, {name}" for name in names}
    return Splits(splits.rows, origins, {**recorded, "files_sha256": found})


def _row(value: Any, split: str, place: str) -> Row:
    """A checked row of ``split``; only ``*_perturbed`` splits have alternatives, only the authors' have paraphrases."""
    if not isinstance(value, dict):
        raise DataError(f"{place}: expected an object, got {type(value).__name__}")
    scored = split.endswith("_perturbed")
    paraphrased = scored and not split.startswith(("real_authors", "world_facts"))
    perturbed: list[str] = []
    if scored:
        perturbed = _field(value, "perturbed_answer", list, place)
        if not perturbed or not all(isinstance(text, str) for text in perturbed):
            raise DataError(f"{place}: field 'perturbed_answer' must be a list of at least one text")
    return Row(
        question=_field(value, "question", str, place),
        answer=_field(value, "answer", str, place),
        paraphrased=_field(value, "paraphrased_answer", str, place) if paraphrased else None,
        perturbed=tuple(perturbed),
    )


def _field(value: dict[str, Any], name: str, kind: type, place: str) -> Any:
    if name not in value:
        raise DataError(f"{place}: field {name!r} is missing; the row has {', '.join(sorted(value))}")
    if not isinstance(value[name], kind):
        wanted = "a list of texts" if kind is list else "a text"
        raise DataError(f"{place}: field {name!r} must be {wanted}, got {type(value[name]).__name__}")
    return value[name]
