"""Bring a published checkpoint into the experiment: ``python -m pipeline.steps.fetch_model SPEC.yaml``.

Files already in the hub's local cache are not loaded again, and with ``HF_HUB_OFFLINE=1`` nothing is asked for. Where
adapters are given they are merged into it. Writes
``checkpoint/`` and ``summary.json``.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from megatron_ext.specs import read
from megatron_ext.summary import Clock
from pipeline.hub import local_files, model_folder
from pipeline.hub.download import HubError, place, snapshot
from pipeline.specs import FetchSpec


def main(argv: Sequence[str] | None = None) -> None:
    """Run the program with the arguments ``argv``, by default those of the command line."""
    clock = Clock()
    parser = argparse.ArgumentParser(prog="python -m pipeline.steps.fetch_model", description="Fetch a checkpoint.")
    parser.add_argument("spec", type=Path, help="YAML file with a FetchSpec")
    spec = read(parser.parse_args(argv).spec, FetchSpec)
    clock.mark("startup")
    try:
        source, revision = _source(spec)
    except HubError as error:
        raise SystemExit(
            f"{error}\nA checkpoint that is already on this machine can be named by 'folder' in the model file."
        ) from error
    _check(spec, source)
    clock.mark("work")
    checkpoint = spec.output / "checkpoint"
    if spec.adapter is None:
        size = place({file.name: file for file in local_files.model_files(source)}, checkpoint)
    else:
        size = _merged(source, spec.adapter, checkpoint)
    clock.mark("write")
    clock.write(spec.output, revision=revision, bytes=size)


def _source(spec: FetchSpec) -> tuple[Path, str | None]:
    """The folder with the checkpoint, and its commit on the hub."""
    if spec.hub is not None:
        return snapshot(spec.hub, spec.revision, local_files.WANTED, "model", local_files.UNWANTED)
    assert spec.folder is not None  # a specification has exactly one of the two
    return spec.folder, None


def _merged(base: Path, adapter: Path, checkpoint: Path) -> int:
    """Merge adapters into their base model; how many bytes that makes."""
    from megatron_ext.checkpoint import adapter_folder  # imports torch

    try:
        adapter_folder.merge(base, adapter, checkpoint)
    except (OSError, ValueError) as error:
        raise SystemExit(f"adapter: {error}") from error
    return sum(file.stat().st_size for file in checkpoint.iterdir())


def _check(spec: FetchSpec, source: Path) -> None:
    """Stop unless ``source`` is a complete checkpoint whose config agrees with what the plan was checked against."""
    problem = model_folder.fault(source)
    if problem:
        named = f"hub: {spec.hub!r}: the cache's {source}" if spec.hub else str(source)
        raise SystemExit(f"{named} {problem}")
    config = local_files.architecture(source) or {}
    differ = [
        f"{key}: {config.get(key)!r}, the model file says {value!r}"
        for key, value in spec.expected.items()
        if config.get(key) != value
    ]
    if differ:
        raise SystemExit("\n".join([f"{source / 'config.json'} is not the planned architecture:", *differ]))


if __name__ == "__main__":
    main()
