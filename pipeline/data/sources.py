"""Where benchmark text comes from: the Hugging Face hub, a local folder of the same files, or our own generator.

All three give the same named splits, so that nothing after this module asks where a row came from.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pipeline.data import synthetic
from pipeline.data.rows import DataError, Row, Splits
from pipeline.specs import DataSource, FolderSource, HubSource, SyntheticSource

RETAIN_SPLITS = {"forget01": "retain99", "forget05": "retain95", "forget10": "retain90"}
SUFFIXES = (".json", ".jsonl")
ALTERNATIVES = "idk"  # the forget set's prompts with refusals for answers


def load(source: DataSource, forget_split: str) -> Splits:
    """Read or make the splits that preparing ``forget_split`` needs: TOFU's (arXiv 2401.06121), by TOFU's names.

    Raises ``DataError`` for an unknown split, a missing file, an unreadable row, or a hub that cannot be reached.
    """
    if forget_split not in RETAIN_SPLITS:
        raise DataError(f"forget_split: {forget_split!r} is not one of {', '.join(RETAIN_SPLITS)}")
    names = split_names(forget_split)
    if isinstance(source, FolderSource):
        return _folder(source, names)
    if isinstance(source, HubSource):
        return _hub(source, names)
    return synthetic.generate(source, forget_split, RETAIN_SPLITS[forget_split])


def split_names(forget_split: str) -> list[str]:
    """The splits read from the hub or a folder: trained ones first, then those that are scored."""
    return [
        "full",
        forget_split,
        RETAIN_SPLITS[forget_split],
        f"{forget_split}_perturbed",
        "retain_perturbed",
        "real_authors_perturbed",
        "world_facts_perturbed",
    ]


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


def split_file(folder: Path, split: str) -> Path | None:
    """The file of a split in a local folder, or ``None``."""
    return next((path for path in (folder / f"{split}{suffix}" for suffix in SUFFIXES) if path.is_file()), None)


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


def _hub(source: HubSource, names: list[str]) -> Splits:
    revision = _resolve(source)
    from datasets import load_dataset

    rows, origins = {}, {}
    for name in names:
        origin = f"{source.repository}@{revision[:12]}, {name}"
        try:
            table = load_dataset(source.repository, name, split="train", revision=revision)
        # Without a network the libraries raise a different class at each stage (ConnectionError, OfflineModeIsEnabled,
        # DatasetNotFoundError, ValueError from the cache look-up); for the user they are one event.
        except Exception as error:
            raise DataError(f"source: {origin} cannot be loaded: {_first_line(error)}. {_remedy()}") from error
        rows[name] = [_row(value, name, f"{origin}, row {i}") for i, value in enumerate(table)]
        origins[name] = origin
    return Splits(rows, origins, {"kind": "hub", "repository": source.repository, "revision": revision})


def _resolve(source: HubSource) -> str:
    """The commit that ``source.revision`` names; asks the hub only for branch and tag names."""
    if re.fullmatch(r"[0-9a-f]{40}", source.revision):
        return source.revision
    from huggingface_hub import HfApi

    try:
        commit = HfApi().dataset_info(source.repository, revision=source.revision).sha
    except Exception as error:  # as in _hub: many classes, one event
        raise DataError(
            f"source.revision: {source.revision!r} of {source.repository} is not a 40-digit commit and cannot be "
            f"resolved: {_first_line(error)}. {_remedy()}"
        ) from error
    if not commit:
        raise DataError(f"source.revision: the hub names no commit for {source.revision!r} of {source.repository}")
    return commit


def _remedy() -> str:
    offline = os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "ON", "YES", "TRUE"}
    reason = "HF_HUB_OFFLINE is set and the local cache does not hold it" if offline else "Is the hub reachable"
    return f"{reason}{'.' if offline else '?'} Files that are already here can be read with source kind 'folder'"


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")


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
