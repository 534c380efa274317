"""What ``sign`` and ``verify`` have in common: which folders of results are signed, and where signatures are.

Signatures are OpenSSF's (package ``model-signing``): one of the report, and one of every unlearned checkpoint, in the
folder ``signatures`` of the results. Whoever has the package can check them without this project.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pipeline.config.located_yaml import ConfigError
from pipeline.data.json_files import read_object

FOLDER = "signatures"
EVIDENCE = "evidence.json"


def signed_folders(results: Path) -> dict[str, Path]:
    """By the name of its signature, every folder that is signed: the report, and the unlearned checkpoints.

    Raises:
        ConfigError: The folder holds no report with evidence, or a checkpoint that evidence is about is not there.
    """
    evidence = results / "report" / EVIDENCE
    if not evidence.is_file():
        what = (
            f"{evidence} is missing: name an experiment's folder of results, such as results/mini, after `unlearn run`"
        )
        raise ConfigError([what])
    known = {model["model"] for model in read_object(evidence)["models"]}
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
    """The files of checkpoints that are not those that evidence names by SHA-256, a line each."""
    from pipeline.data.cache import sha256

    folders, lines = signed_folders(results), list[str]()
    for model in read_object(results / "report" / EVIDENCE)["models"]:
        for name, digest in (model["files_sha256"] or {}).items():
            file = folders[model["model"]] / name
            if not file.is_file() or sha256(file) != digest:
                lines.append(f"{file}: is not the file that {EVIDENCE} names")
    return lines
