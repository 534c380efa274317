"""A data set's files come from the hub's cache into the experiment, with a manifest that says what they are."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from pipeline.benchmarks.tofu.data import DATA
from pipeline.data.sources import SUFFIXES
from pipeline.launch.specification import as_yaml
from pipeline.specs import FetchDataSpec
from pipeline.steps import fetch_data

COMMIT = "0123456789abcdef0123456789abcdef01234567"
SPLITS = [name for (name,) in DATA.files("forget10", ("forget", "retain", "real_authors", "world_facts"), True)]


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The snapshot of a repository in the hub's cache, which holds more than is asked for; no connection."""
    repository = tmp_path / "hub" / "datasets--some--set"
    folder = repository / "snapshots" / COMMIT
    folder.mkdir(parents=True)
    for name in (*SPLITS, "forget01", "holdout10"):
        (folder / f"{name}.json").write_text(f'{{"question": "{name}"}}\n')
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    return folder


def run(tmp_path: Path, **changes: Any) -> Path:
    values = {"repository": "some/set", "revision": "main", "files": [[name] for name in SPLITS]}
    spec = FetchDataSpec(**{**values, "output": tmp_path / "out", **changes})
    (tmp_path / "spec.yaml").write_text(as_yaml(spec))
    spec.output.mkdir(exist_ok=True)
    fetch_data.main([str(tmp_path / "spec.yaml")])
    return spec.output


def test_exactly_the_needed_files_and_what_they_are(hub: Path, tmp_path: Path) -> None:
    output = run(tmp_path)
    assert {path.name for path in (output / "files").iterdir()} == {f"{name}.json" for name in SPLITS}
    assert json.loads((output / "manifest.json").read_text()) == {
        "schema": 1,
        "kind": "hub",
        "repository": "some/set",
        "requested_revision": "main",
        "revision": COMMIT,
        "files_sha256": {
            f"{name}.json": hashlib.sha256((hub / f"{name}.json").read_bytes()).hexdigest() for name in SPLITS
        },
    }
    summary = json.loads((output / "summary.json").read_text())
    assert summary["revision"] == COMMIT
    assert summary["bytes"] == sum((hub / f"{name}.json").stat().st_size for name in SPLITS)
    run(tmp_path)  # again, over what is there
    assert {path.name for path in output.iterdir()} == {"files", "manifest.json", "summary.json"}


def test_the_library_is_asked_for_these_files_only(hub: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {}

    def download(repository: str, **options: Any) -> str:
        asked.update(options, repository=repository)
        return str(hub)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    run(tmp_path, files=[["full"], ["absent", "forget10"]], revision="v1")
    patterns = [name + suffix for name in ("full", "absent", "forget10") for suffix in SUFFIXES]
    assert {"full.json", "forget10.jsonl"} <= set(patterns)
    assert asked.pop("allow_patterns") == patterns
    assert asked == {"repository": "some/set", "repo_type": "dataset", "revision": "v1", "ignore_patterns": []}


def test_a_missing_split_is_named_and_nothing_is_written(hub: Path, tmp_path: Path) -> None:
    (hub / "retain_perturbed.json").unlink()
    message = r"'some/set' at revision 'main' has neither retain_perturbed\.json nor retain_perturbed\.jsonl"
    with pytest.raises(SystemExit, match=message):
        run(tmp_path)
    assert list((tmp_path / "out").iterdir()) == []


def test_what_cannot_be_loaded_says_what_to_do(hub: Path, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"HF_HUB_OFFLINE is set(.|\n)*data_root=DIR"):
        run(tmp_path, repository="some/other")
    assert list((tmp_path / "out").iterdir()) == []
