"""Where a step's output comes from: code, specification, data, packages, machine and times, as ``provenance.json``."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import re
import socket
import subprocess
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from megatron_ext.atomic_files import write_json
from megatron_ext.specs import StepSpec
from pipeline.data.cache import sha256
from pipeline.launch.image import IMAGE, IMAGE_SHA256
from pipeline.steps.programs import ROOT

SCHEMA = 1
PROJECT = "megatron-unlearning"


def write(spec: StepSpec, digest: str, started: datetime) -> None:
    """Write ``provenance.json`` into the output of ``spec``, the file of which has this SHA-256; atomic."""
    write_json(Path(spec.output) / "provenance.json", record(spec, digest, started))


def record(spec: StepSpec, digest: str, started: datetime) -> dict[str, Any]:
    """What ``provenance.json`` holds; times are UTC, ``summary`` is the step's own (seconds, flags)."""
    values = spec.model_dump(mode="json")
    summary = Path(spec.output) / "summary.json"
    return {
        "schema": SCHEMA,
        "step": spec.program,
        "git": _git(),
        "spec": values,
        "spec_sha256": digest,
        "data": {str(file): json.loads(file.read_text(encoding="utf-8")) for file in _manifests(values)},
        "packages": _packages(),
        "python": platform.python_version(),
        "layout": values.get("runtime", {}).get("layout"),
        "seed": values.get("seed"),
        "checkpoint": _checkpoint(Path(spec.output)),
        "image": _given(path=IMAGE, sha256=IMAGE_SHA256),
        "slurm": _given(job="SLURM_JOB_ID", nodes="SLURM_JOB_NODELIST"),
        "host": {"name": socket.gethostname(), "machine": platform.machine(), "cores": os.cpu_count()},
        "started": started.isoformat(timespec="seconds"),
        "ended": datetime.now(UTC).isoformat(timespec="seconds"),
        "summary": json.loads(summary.read_text(encoding="utf-8")),
    }


def _checkpoint(output: Path) -> dict[str, str] | None:
    """SHA-256 of the config and of every file of weights of the checkpoint that the step wrote, if it wrote one."""
    folder = output / "checkpoint"
    files = [folder / "config.json", *sorted(folder.glob("*.safetensors"))]
    return {file.name: sha256(file) for file in files} if files[0].is_file() else None


def _given(**variables: str) -> dict[str, str | None] | None:
    """What the environment says of each key; ``None`` where it says nothing: no image, no Slurm job."""
    found = {key: os.environ.get(variable) for key, variable in variables.items()}
    return found if any(found.values()) else None


def _git() -> dict[str, Any] | None:
    """Commit of the code and whether files differ from it; ``None`` outside a repository or without a commit."""
    try:
        commit = _of_git("rev-parse", "HEAD").strip()
        return {"commit": commit, "dirty": bool(_of_git("status", "--porcelain"))}
    except (OSError, subprocess.CalledProcessError):
        return None


def _of_git(*arguments: str) -> str:
    """What git prints, with the settings of the repository alone, and without those by which it runs programs."""
    command = ["git", "--no-optional-locks", "-c", "core.fsmonitor=", "-c", f"core.hooksPath={os.devnull}"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    environment |= {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_NOSYSTEM": "1"}
    command += ["-C", str(ROOT), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout


def _manifests(values: Any) -> Iterator[Path]:
    """Manifests of the prepared data that the specification's paths lie in."""
    folders = {parent for text in _texts(values) for parent in (Path(text), *list(Path(text).parents)[:2])}
    return iter(sorted(folder / "manifest.json" for folder in folders if (folder / "manifest.json").is_file()))


def _texts(values: Any) -> Iterator[str]:
    if isinstance(values, str):
        yield values
    elif isinstance(values, dict):
        for key, value in values.items():
            yield from (key, *_texts(value))
    elif isinstance(values, list):
        for value in values:
            yield from _texts(value)


def _packages() -> dict[str, str]:
    """Installed versions of this project's direct requirements, those of its extras (but ``dev``) among them."""
    try:
        requirements = importlib.metadata.requires(PROJECT) or []
    except importlib.metadata.PackageNotFoundError:
        return {}
    names = sorted({re.split(r"[^\w.-]", text)[0] for text in requirements if not re.search(r"extra == .dev", text)})
    found = {}
    for name in names:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
