"""Whole data sets of the hub, from its local cache."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from pipeline.benchmarks.lm_eval.load import snapshot_of
from pipeline.data.errors import DataError
from pipeline.steps import fetch_data

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A hub's cache with one data set, and no connection."""
    hub = tmp_path / "hub"
    folder = hub / "datasets--cais--gongs"
    (folder / "snapshots" / COMMIT / "test").mkdir(parents=True)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text(COMMIT)
    (folder / "snapshots" / COMMIT / "test" / "a.jsonl").write_text('{"question": "Which?"}\n')
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(hub))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    return folder


def spec(tmp_path: Path, **datasets: str) -> Path:
    told = {"program": "fetch_datasets", "datasets": {f"cais/{name}": revision for name, revision in datasets.items()}}
    path = tmp_path / "spec.yaml"
    path.write_text(yaml.safe_dump({**told, "output": str(tmp_path / "out")}))
    return path


def test_what_is_there_is_written_down_and_found_again(cache: Path, tmp_path: Path) -> None:
    fetch_data.main([str(spec(tmp_path, gongs="main"))])
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["datasets"] == {"cais/gongs": {"requested_revision": "main", "revision": COMMIT}}
    assert snapshot_of("cais/gongs", "main", "gongs") == cache / "snapshots" / COMMIT


def test_what_is_not_there_is_said_and_leaves_no_manifest(cache: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "manifest.json").write_text("{}")
    with pytest.raises(SystemExit, match=r"hub: dataset 'cais/bells' at revision 'main': HF_HUB_OFFLINE is set"):
        fetch_data.main([str(spec(tmp_path, gongs="main", bells="main"))])
    assert not (tmp_path / "out" / "manifest.json").exists()
    with pytest.raises(DataError, match=r"task 'bells': data set 'cais/bells' at .* is not on this machine"):
        snapshot_of("cais/bells", "main", "bells")
