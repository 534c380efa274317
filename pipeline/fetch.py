"""Bring a published checkpoint into the experiment: ``python -m pipeline.fetch SPEC.yaml`` (a ``FetchSpec``).

The only step that may need the internet. Files already in the hub's local cache are not loaded again, and with
``HF_HUB_OFFLINE=1`` nothing is asked for. Writes ``checkpoint/`` and ``summary.json``.
"""

from __future__ import annotations

import argparse
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from megatron_ext.specs import read
from megatron_ext.summary import Clock
from pipeline import files
from pipeline.specs import FetchSpec


def main(argv: Sequence[str] | None = None) -> None:
    clock = Clock()
    parser = argparse.ArgumentParser(prog="python -m pipeline.fetch", description=__doc__.splitlines()[0])
    parser.add_argument("spec", type=Path, help="YAML file with a FetchSpec")
    spec = read(parser.parse_args(argv).spec, FetchSpec)
    clock.mark("startup")
    source, revision = _source(spec)
    _check(spec, source)
    clock.mark("work")
    size = _copy(source, spec.output / "checkpoint")
    clock.mark("write")
    clock.write(spec.output, revision=revision, bytes=size)


def _source(spec: FetchSpec) -> tuple[Path, str | None]:
    """The folder to copy from, and the commit of a hub repository."""
    if spec.folder is not None:
        return spec.folder, None
    from huggingface_hub import snapshot_download

    try:
        folder = Path(snapshot_download(spec.hub, revision=spec.revision, allow_patterns=list(files.WANTED)))
    # Without a network the library raises a different class at each stage; for the user they are one event.
    except Exception as error:
        raise SystemExit(
            f"hub: {spec.hub!r} at revision {spec.revision or 'main'} cannot be loaded: {error}\n"
            "A checkpoint that is already on this machine can be named by 'folder' in the model file."
        ) from error
    return folder, folder.name


def _check(spec: FetchSpec, source: Path) -> None:
    """Stop unless ``source`` is a complete checkpoint whose config agrees with what the plan was checked against."""
    problem = files.missing_model_files(source)
    if problem:
        raise SystemExit(f"{source}: {problem}")
    config = files.architecture(source) or {}
    differ = [
        f"{key}: {config.get(key)!r}, the model file says {value!r}"
        for key, value in spec.expected.items()
        if config.get(key) != value
    ]
    if differ:
        raise SystemExit("\n".join([f"{source / 'config.json'} is not the planned architecture:", *differ]))


def _copy(source: Path, target: Path) -> int:
    """Put the wanted files of ``source`` into ``target`` under a temporary name first; returns their bytes."""
    temporary = target.with_name(f".{target.name}.{os.getpid()}")
    temporary.mkdir(parents=True)
    names = [file.name for file in files.model_files(source)]
    for name in names:
        real = (source / name).resolve()
        try:
            os.link(real, temporary / name)  # no second copy of the weights on the same file system
        except OSError:
            shutil.copyfile(real, temporary / name)
    size = sum((temporary / name).stat().st_size for name in names)
    if target.exists():
        shutil.rmtree(target)
    os.replace(temporary, target)
    return size


if __name__ == "__main__":
    main()
