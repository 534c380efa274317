"""Bring a data set's files into the experiment: ``python -m pipeline.steps.fetch_data SPEC.yaml``.

Files already in the hub's local cache are not loaded again, and with ``HF_HUB_OFFLINE=1`` nothing is asked for. Writes
``files/``, ``summary.json`` and last ``manifest.json``: repository, revision, commit and the files' SHA-256.
"""

from __future__ import annotations

import argparse
import hashlib
from collections.abc import Sequence
from pathlib import Path

from megatron_ext.atomic_files import write_json
from megatron_ext.specs import read
from megatron_ext.summary import Clock
from pipeline.data.sources import SUFFIXES, either, find
from pipeline.hub.download import HubError, place, snapshot
from pipeline.specs import FetchDataSpec

SCHEMA = 1


def main(argv: Sequence[str] | None = None) -> None:
    clock = Clock()
    parser = argparse.ArgumentParser(prog="python -m pipeline.steps.fetch_data", description=__doc__.splitlines()[0])
    parser.add_argument("spec", type=Path, help="YAML file with a FetchDataSpec")
    spec = read(parser.parse_args(argv).spec, FetchDataSpec)
    clock.mark("startup")
    patterns = [name + suffix for names in spec.files for name in names for suffix in SUFFIXES]
    try:
        source, commit = snapshot(spec.repository, spec.revision, patterns, "dataset")
    except HubError as error:
        raise SystemExit(
            f"{error}\nFiles that are already on this machine can be named by --config data_root=DIR."
        ) from error
    found = [_file(spec, source, names) for names in spec.files]
    placed = {file.relative_to(source).as_posix(): file for file in found}
    clock.mark("work")
    (spec.output / "manifest.json").unlink(missing_ok=True)
    size = place(placed, spec.output / "files")
    sums = {name: hashlib.sha256((spec.output / "files" / name).read_bytes()).hexdigest() for name in placed}
    clock.mark("write")
    clock.write(spec.output, revision=commit, bytes=size)
    revisions = {"requested_revision": spec.revision, "revision": commit}
    manifest = {"schema": SCHEMA, "kind": "hub", "repository": spec.repository, **revisions, "files_sha256": sums}
    write_json(spec.output / "manifest.json", manifest)


def _file(spec: FetchDataSpec, source: Path, names: Sequence[str]) -> Path:
    file = find(source, tuple(names))
    if file is None:
        raise SystemExit(
            f"hub: dataset {spec.repository!r} at revision {spec.revision!r} has neither {either(tuple(names))}, or "
            f"they were not loaded (looked in {source}; without a connection only what the cache holds is found)"
        )
    return file


if __name__ == "__main__":
    main()
