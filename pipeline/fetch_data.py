"""Bring a data set's files into the experiment: ``python -m pipeline.fetch_data SPEC.yaml`` (a ``FetchDataSpec``).

Files already in the hub's local cache are not loaded again, and with ``HF_HUB_OFFLINE=1`` nothing is asked for. Writes
``files/``, ``summary.json`` and last ``manifest.json``: repository, revision, commit and the files' SHA-256.
"""

from __future__ import annotations

import argparse
import hashlib
from collections.abc import Sequence
from pathlib import Path

from megatron_ext.files import write_json
from megatron_ext.specs import read
from megatron_ext.summary import Clock
from pipeline.data.splits import SUFFIXES, split_file
from pipeline.hub import HubError, place, snapshot
from pipeline.specs import FetchDataSpec

SCHEMA = 1


def main(argv: Sequence[str] | None = None) -> None:
    clock = Clock()
    parser = argparse.ArgumentParser(prog="python -m pipeline.fetch_data", description=__doc__.splitlines()[0])
    parser.add_argument("spec", type=Path, help="YAML file with a FetchDataSpec")
    spec = read(parser.parse_args(argv).spec, FetchDataSpec)
    clock.mark("startup")
    patterns = [split + suffix for split in spec.splits for suffix in SUFFIXES]
    try:
        source, commit = snapshot(spec.repository, spec.revision, patterns, "dataset")
    except HubError as error:
        raise SystemExit(
            f"{error}\nFiles that are already on this machine can be named by --config data_root=DIR."
        ) from error
    found = [_file(spec, source, split) for split in spec.splits]
    clock.mark("work")
    (spec.output / "manifest.json").unlink(missing_ok=True)
    size = place({file.name: file for file in found}, spec.output / "files")
    sums = {file.name: hashlib.sha256((spec.output / "files" / file.name).read_bytes()).hexdigest() for file in found}
    clock.mark("write")
    clock.write(spec.output, revision=commit, bytes=size)
    revisions = {"requested_revision": spec.revision, "revision": commit}
    manifest = {"schema": SCHEMA, "kind": "hub", "repository": spec.repository, **revisions, "files_sha256": sums}
    write_json(spec.output / "manifest.json", manifest)


def _file(spec: FetchDataSpec, source: Path, split: str) -> Path:
    file = split_file(source, split)
    if file is None:
        names = " nor ".join(split + suffix for suffix in SUFFIXES)
        raise SystemExit(
            f"hub: dataset {spec.repository!r} at revision {spec.revision!r} has neither {names}, or they were not "
            f"loaded (looked in {source}; without a connection only what the cache holds is found)"
        )
    return file


if __name__ == "__main__":
    main()
