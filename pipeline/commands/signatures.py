"""What ``sign`` and ``verify`` have in common: which folders of results are signed, and where signatures are.

Signatures are OpenSSF's (package ``model-signing``): one of the report, and one of every unlearned checkpoint, in the
folder ``signatures`` of the results. Whoever has the package can check them without this project.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pipeline.config.located_yaml import ConfigError
from pipeline.data.errors import DataError
from pipeline.data.json_files import read_object, short

FOLDER = "signatures"
EVIDENCE = "evidence.json"


def signed_folders(results: Path) -> dict[str, Path]:
    """By the name of its signature, every folder that is signed: the report, and the unlearned checkpoints.

    Raises:
        ConfigError: The folder holds no report with evidence, or a checkpoint that evidence is about is not there.
        DataError: The evidence is not what a report writes.
    """
    evidence = results / "report" / EVIDENCE
    if not evidence.is_file():
        what = (
            f"{evidence} is missing: name an experiment's folder of results, such as results/mini, after `unlearn run`"
        )
        raise ConfigError([what])
    known = set(_models(evidence))
    cards = sorted((results / "unlearned").glob("*/seed-*/checkpoint/README.md"))
    found = {f"{card.parts[-4]}-{card.parts[-3]}": card.parent for card in cards}
    released = {name for name in known if (results / "kept" / name / "ready.json").is_file()}
    known -= released - found.keys()  # removed, as the experiment says
    lacking = sorted(known - found.keys())
    if lacking:
        raise ConfigError([f"{results / 'unlearned'}: the checkpoint of {name} is missing" for name in lacking])
    return {"report": results / "report", **{name: found[name] for name in sorted(known)}}


def signature(results: Path, name: str) -> Path:
    """The file of a signature."""
    return results / FOLDER / f"{name}.sig"


def library(name: str) -> Any:
    """A module of ``model_signing``.

    Raises:
        ConfigError: It is not installed.
    """
    import importlib

    try:
        return importlib.import_module(f"model_signing.{name}")
    except ImportError as error:
        what = f"model-signing: {error}. Install it: python -m pip install 'megatron-unlearning[sign]'"
        raise ConfigError([what]) from None


def differing(results: Path) -> list[str]:
    """The files of checkpoints that are not those that evidence names by SHA-256, a line each.

    Raises:
        ConfigError: As ``signed_folders``.
        DataError: The evidence is not what a report writes.
    """
    from pipeline.data.cache import sha256

    folders, lines = signed_folders(results), list[str]()
    for model, files in _models(results / "report" / EVIDENCE).items():
        for name, digest in files.items() if model in folders else ():
            file = folders[model] / name
            if not file.is_file() or sha256(file) != digest:
                lines.append(f"{file}: is not the file that {EVIDENCE} names")
    return lines


def _models(evidence: Path) -> dict[str, dict[str, str]]:
    """By the models that evidence is about, the SHA-256 of their checkpoints' files.

    Raises:
        DataError: It is not what a report writes; others may have made it.
    """
    whole = read_object(evidence)
    entries, found = whole.get("models"), dict[str, dict[str, str]]()
    if not isinstance(entries, list):
        raise DataError(f"{evidence}: models: expected a list, got {short(entries)}")
    for number, entry in enumerate(entries):
        place = f"{evidence}: models[{number}]"
        if not isinstance(entry, dict) or not isinstance(entry.get("model"), str):
            raise DataError(f"{place}: expected an object whose 'model' is a text, got {short(entry)}")
        files = entry.get("files_sha256") or {}
        if not isinstance(files, dict) or not all(isinstance(digest, str) for digest in files.values()):
            raise DataError(f"{place}.files_sha256: expected a SHA-256 by file, got {short(files)}")
        for name in files:
            if Path(name).is_absolute() or ".." in Path(name).parts:
                raise DataError(f"{place}.files_sha256: {short(name)} is no file in a checkpoint")
        found[entry["model"]] = files
    return found
