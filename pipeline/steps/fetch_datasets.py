"""Bring whole data sets of the hub into its local cache: ``python -m pipeline.steps.fetch_datasets SPEC.yaml`` (a
``FetchDatasetsSpec``).

For benchmarks whose evaluation reads them from there, without a connection. Files that the cache has are not loaded
again, and with ``HF_HUB_OFFLINE=1`` nothing is asked for. Writes ``summary.json`` and last ``manifest.json``: of each
data set the revision that was asked for and the commit that it is.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from megatron_ext.atomic_files import write_json
from megatron_ext.specs import read
from megatron_ext.summary import Clock
from pipeline.hub.download import HubError, snapshot
from pipeline.specs import FetchDatasetsSpec

SCHEMA = 1


def main(argv: Sequence[str] | None = None) -> None:
    clock = Clock()
    parser = argparse.ArgumentParser(
        prog="python -m pipeline.steps.fetch_datasets", description="Fetch whole data sets."
    )
    parser.add_argument("spec", type=Path, help="YAML file with a FetchDatasetsSpec")
    spec = read(parser.parse_args(argv).spec, FetchDatasetsSpec)
    clock.mark("startup")
    spec.output.mkdir(parents=True, exist_ok=True)
    (spec.output / "manifest.json").unlink(missing_ok=True)
    found = {}
    for repository, revision in spec.datasets.items():
        try:
            folder, commit = snapshot(repository, revision, ["*"], "dataset")
        except HubError as error:
            raise SystemExit(str(error)) from error
        if not any(path.is_file() for path in folder.rglob("*")):
            raise SystemExit(f"hub: dataset {repository!r} at revision {revision!r}: the cache's {folder} is empty")
        found[repository] = {"requested_revision": revision, "revision": commit}
    clock.mark("work")
    clock.write(spec.output, datasets={name: entry["revision"] for name, entry in found.items()})
    write_json(spec.output / "manifest.json", {"schema": SCHEMA, "kind": "hub", "datasets": found})


if __name__ == "__main__":
    main()
