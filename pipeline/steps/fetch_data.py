"""Bring data sets of the hub onto this machine: ``python -m pipeline.steps.fetch_data SPEC.yaml``.

A ``FetchDataSpec`` names files, which go into the experiment's folder, where the prepare step reads them. A
``FetchDatasetsSpec`` names whole data sets, which stay in the hub's local cache, where an evaluation reads them. Files
that the cache has are not loaded again, and with ``HF_HUB_OFFLINE=1`` the network is not used.

Writes ``summary.json`` and last ``manifest.json`` with the revision that was asked for and the commit that was found;
for files also ``files/``, with the SHA-256 of each in the manifest.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import yaml

from megatron_ext.atomic_files import write_json
from megatron_ext.schema.safe_yaml import Loader
from megatron_ext.specs import read
from megatron_ext.summary import Clock
from pipeline.data.cache import MANIFEST, sha256
from pipeline.data.prepared import Names
from pipeline.data.sources import SUFFIXES, either, find
from pipeline.hub.download import HubError, place, snapshot
from pipeline.specs import FetchDatasetsSpec, FetchDataSpec

SCHEMA = 1


def main(argv: Sequence[str] | None = None) -> None:
    """Run the program with the arguments ``argv``, by default those of the command line."""
    clock = Clock()
    parser = argparse.ArgumentParser(prog="python -m pipeline.steps.fetch_data", description="Fetch data sets.")
    parser.add_argument("spec", type=Path, help="YAML file with a FetchDataSpec or a FetchDatasetsSpec")
    path = parser.parse_args(argv).spec
    spec = read(path, _kind(path))
    clock.mark("startup")
    try:
        if isinstance(spec, FetchDataSpec):
            fetch_files(spec, clock)
        else:
            fetch_datasets(spec, clock)
    except HubError as error:
        raise SystemExit(str(error)) from error


def _kind(path: Path) -> type[FetchDataSpec] | type[FetchDatasetsSpec]:
    """The class of the specification at ``path``, by the program that it names."""
    try:
        found = yaml.load(path.read_text(encoding="utf-8"), Loader)
    except (OSError, ValueError, yaml.YAMLError):
        return FetchDataSpec  # and reading it says what is wrong with the file
    named = found.get("program") if isinstance(found, dict) else None
    return FetchDatasetsSpec if named == "fetch_datasets" else FetchDataSpec


def fetch_files(spec: FetchDataSpec, clock: Clock) -> None:
    """Put the files of a data set into ``spec.output / "files"``.

    Raises:
        HubError: the data set or one of the files cannot be had
    """
    patterns = [name + suffix for names in spec.files for name in names for suffix in SUFFIXES]
    try:
        source, commit = snapshot(spec.repository, spec.revision, patterns, "dataset")
    except HubError as error:
        raise HubError(
            f"{error}\nFiles that are already on this machine can be named by --config data_root=DIR."
        ) from error
    found = [_file(spec, source, tuple(names)) for names in spec.files]
    placed = {file.relative_to(source).as_posix(): file for file in found}
    clock.mark("work")
    (spec.output / MANIFEST).unlink(missing_ok=True)
    size = place(placed, spec.output / "files")
    sums = {name: sha256(spec.output / "files" / name) for name in placed}
    clock.mark("write")
    clock.write(spec.output, revision=commit, bytes=size)
    revisions = {"requested_revision": spec.revision, "revision": commit}
    manifest = {"schema": SCHEMA, "kind": "hub", "repository": spec.repository, **revisions, "files_sha256": sums}
    write_json(spec.output / MANIFEST, manifest)


def _file(spec: FetchDataSpec, source: Path, names: Names) -> Path:
    file = find(source, names)
    if file is None:
        raise HubError(
            f"hub: dataset {spec.repository!r} at revision {spec.revision!r} has neither {either(names)}, or "
            f"they were not loaded (looked in {source}; without a connection only what the cache holds is found)"
        )
    return file


def fetch_datasets(spec: FetchDatasetsSpec, clock: Clock) -> None:
    """Bring whole data sets into the hub's local cache.

    Raises:
        HubError: a data set cannot be had, or the cache holds none of its files
    """
    spec.output.mkdir(parents=True, exist_ok=True)
    (spec.output / MANIFEST).unlink(missing_ok=True)
    found = {}
    for repository, revision in spec.datasets.items():
        folder, commit = snapshot(repository, revision, ["*"], "dataset")
        if not any(path.is_file() for path in folder.rglob("*")):
            raise HubError(f"hub: dataset {repository!r} at revision {revision!r}: the cache's {folder} is empty")
        found[repository] = {"requested_revision": revision, "revision": commit}
    clock.mark("work")
    clock.write(spec.output, datasets={name: entry["revision"] for name, entry in found.items()})
    write_json(spec.output / MANIFEST, {"schema": SCHEMA, "kind": "hub", "datasets": found})


if __name__ == "__main__":
    main()
