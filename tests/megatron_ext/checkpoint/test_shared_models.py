"""Trained models that experiments share: found by what decides their weights, and copied only where they are whole."""

from __future__ import annotations

import errno
import json
import resource
from pathlib import Path
from typing import Any

import pytest

from megatron_ext.checkpoint import shared_models
from tests.support import worlds

FACTS = {"steps": 3, "trained_seconds": 1.5}


@pytest.fixture
def entry(tmp_path: Path) -> Path:
    """A folder of models with one that is called ``name``."""
    (tmp_path / "run" / "checkpoint").mkdir(parents=True)
    (tmp_path / "run" / "checkpoint" / "model.safetensors").write_bytes(b"weights")
    (tmp_path / "run" / "steps.jsonl").write_text("{}\n")
    shared_models.store(tmp_path / "shared", "name", tmp_path / "run", FACTS)
    return tmp_path / "shared" / "name"


def test_a_stored_model_is_copied_over_what_was_there(entry: Path, tmp_path: Path) -> None:
    (tmp_path / "other" / "checkpoint").mkdir(parents=True)
    (tmp_path / "other" / "checkpoint" / "old").touch()
    assert shared_models.fetch(entry.parent, "name", tmp_path / "other") == FACTS
    found = {path.name: path.read_bytes() for path in (tmp_path / "other").rglob("*") if path.is_file()}
    assert found == {"model.safetensors": b"weights", "steps.jsonl": b"{}\n"}
    assert shared_models.fetch(entry.parent, "another", tmp_path / "other") is None


@pytest.mark.parametrize("damage", ["changed", "missing", "link", "named"])
def test_a_damaged_model_is_removed_and_nothing_copied(entry: Path, tmp_path: Path, damage: str) -> None:
    """Others may write into a shared folder: neither a link nor a name leads out of the entry."""
    file, record = entry / "model.safetensors", entry / shared_models.FILES
    if damage == "changed":
        file.write_bytes(b"other")
    elif damage == "named":
        files = json.loads(record.read_text())["files"]
        record.write_text(json.dumps({"facts": FACTS, "files": {**files, "../run/steps.jsonl": files["steps.jsonl"]}}))
    else:
        file.unlink()
        if damage == "link":
            file.symlink_to(tmp_path / "run" / "checkpoint" / "model.safetensors")
    (tmp_path / "other").mkdir()
    assert shared_models.fetch(entry.parent, "name", tmp_path / "other") is None
    assert not entry.exists() and list((tmp_path / "other").iterdir()) == []


@pytest.mark.parametrize("record", ["{", "[" * 10**5, '{"facts": {}, "files": {}}', None])
def test_a_wrong_record_is_damage(entry: Path, tmp_path: Path, record: str | None) -> None:
    (entry / shared_models.FILES).unlink()
    if record is not None:
        (entry / shared_models.FILES).write_text(record)
    assert shared_models.fetch(entry.parent, "name", tmp_path / "other") is None
    assert not entry.exists()


def test_a_full_disk_of_the_reader_is_no_damage(tmp_path: Path) -> None:
    (tmp_path / "run" / "checkpoint").mkdir(parents=True)
    (tmp_path / "run" / "checkpoint" / "model.safetensors").write_bytes(bytes(2 * 10**6))
    (tmp_path / "run" / "steps.jsonl").write_text("{}\n")
    shared_models.store(tmp_path / "shared", "name", tmp_path / "run", FACTS)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10**6, before[1]))
    try:
        with pytest.raises(OSError) as raised:
            shared_models.fetch(tmp_path / "shared", "name", tmp_path / "other")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert raised.value.errno == errno.EFBIG
    assert list((tmp_path / "other").iterdir()) == []
    assert shared_models.fetch(tmp_path / "shared", "name", tmp_path / "other") == FACTS


@pytest.mark.parametrize("name", ["model.safetensors", shared_models.FILES])
def test_what_cannot_be_read_stays(
    entry: Path, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    opened = Path.open

    def broken(path: Path, *args: Any, **more: Any) -> Any:
        if path == entry / name:
            raise OSError(errno.EIO, "Input/output error", str(path))
        return opened(path, *args, **more)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "open", broken)
        assert shared_models.fetch(entry.parent, "name", tmp_path / "other") is None
    assert f"{entry} cannot be read" in capsys.readouterr().err
    assert list((tmp_path / "other").iterdir()) == []
    assert shared_models.fetch(entry.parent, "name", tmp_path / "other") == FACTS


@pytest.mark.slow
def test_a_shared_folder_that_cannot_be_written_costs_no_training(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from megatron_ext.steps import train

    worlds.write_data(tmp_path)
    (tmp_path / "shared").touch()
    train.main([str(worlds.train_spec(tmp_path, steps=1, shared=str(tmp_path / "shared")))])
    assert "not kept for other experiments" in capsys.readouterr().err
    assert (tmp_path / "target" / "summary.json").is_file()


@pytest.mark.slow
def test_what_decides_a_models_weights_decides_whether_it_is_trained_again(tmp_path: Path) -> None:
    """A second run elsewhere on equal data copies bytes; another seed or one other row is trained."""
    from megatron_ext.steps import train

    def run(name: str, seed_of_data: int = 1, **changes: Any) -> dict[str, Any]:
        folder = tmp_path / name
        folder.mkdir()
        worlds.sequences(30, seed_of_data).save(folder / "forget.npz")
        worlds.sequences(90, 2).save(folder / "retain.npz")
        train.main([str(worlds.train_spec(folder, steps=2, shared=str(tmp_path / "shared"), **changes))])
        return json.loads((folder / "target" / "summary.json").read_text())

    def weights(name: str) -> bytes:
        return (tmp_path / name / "target" / "checkpoint" / "model.safetensors").read_bytes()

    first, second = run("first"), run("second")
    assert "shared" not in first and second["trained_seconds"] == first["work_seconds"] and second["steps"] == 2
    assert (tmp_path / "shared" / second["shared"]).is_dir()
    assert weights("second") == weights("first")
    steps = [(tmp_path / name / "target" / "steps.jsonl").read_text() for name in ("first", "second")]
    assert steps[0] == steps[1]
    for name, other in (("seed", run("seed", seed=1)), ("data", run("data", seed_of_data=3))):
        assert "shared" not in other and weights(name) != weights("first")
    assert len(list((tmp_path / "shared").iterdir())) == 3
