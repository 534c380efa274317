"""Whole unlearning runs in one process: what they refuse, warn of, flag and log."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from megatron_ext.data.sequences import Sequences
from tests.support import worlds


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data, an untrained target, and its reference log-probabilities."""
    from megatron_ext.steps import reference, train

    folder = tmp_path_factory.mktemp("world")
    worlds.write_data(folder)
    train.main([str(worlds.train_spec(folder, steps=1))])
    reference.main([str(worlds.reference_spec(folder))])
    return folder


def run(world: Path, name: str, topic: dict[str, Any] | None = None, **changes: Any) -> Path:
    """The output folder of a run with these changes to ``worlds.unlearn_spec`` and to its topic."""
    from megatron_ext.steps import unlearn

    path = worlds.unlearn_spec(world, name, **{"epochs": 1.0, **changes})
    spec = yaml.safe_load(path.read_text())
    spec["topics"][0].update(topic or {})
    path.write_text(yaml.safe_dump(spec))
    unlearn.main([str(path)])
    return world / name


def log(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "steps.jsonl").read_text().splitlines()]


def summary(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "summary.json").read_text())


def test_an_empty_forget_set_is_refused(world: Path) -> None:
    Sequences.pack([]).save(world / "empty.npz")
    with pytest.raises(ValueError, match=r"empty\.npz: holds no sequence"):
        run(world, "empty", {"forget_data": str(world / "empty.npz")})


def test_a_sequence_longer_than_the_context_is_refused(world: Path) -> None:
    Sequences.pack([([5] * 10, 2), ([5] * 65, 2)]).save(world / "long.npz")
    with pytest.raises(ValueError, match=r"long\.npz, row 1: 65 tokens, the model's context is 64"):
        run(world, "long", {"forget_data": str(world / "long.npz")}, forget_loss={"name": "ga"})


def test_a_reference_of_other_data_or_another_model_is_refused(world: Path) -> None:
    other = worlds.sequences(30, seed=9)
    other.save(world / "other.npz")
    with pytest.raises(ValueError, match=r"reference\.npz: data_sha256 is .* but this run's is"):
        run(world, "data", {"forget_data": str(world / "other.npz")})
    from megatron_ext.steps import train

    train.main([str(worlds.train_spec(world, "another", steps=2))])
    with pytest.raises(ValueError, match=r"reference\.npz: model_fingerprint is .* but this run's is"):
        run(world, "model", checkpoint=str(world / "another" / "checkpoint"))


def test_sequences_in_both_sets_are_counted_and_named(world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    forget, retain = (Sequences.load(world / f"{name}.npz") for name in ("forget", "retain"))
    rows = [retain.row(i) for i in range(len(retain))] + [forget.row(4), forget.row(17)]
    Sequences.pack([(ids.tolist(), prompt) for ids, prompt in rows]).save(world / "overlapping.npz")
    folder = run(world, "overlap", {"retain_data": str(world / "overlapping.npz")})
    said = capsys.readouterr().err
    assert "2 forget sequences are in the retain set too (forget row = retain row: 4 = 90, 17 = 91)" in said
    assert "overlap" in summary(folder)["flags"]


def test_weights_that_blow_up_stop_the_run_and_keep_the_last_state(world: Path) -> None:
    from megatron_ext.training.accumulator import NonFinite

    changes = {"checkpoint_every": 1, "warmup_epochs": 0.0, "epochs": 3.0}
    with pytest.raises(NonFinite, match=r"step \d+: .*rank 0.*|step \d+: the weights are not finite") as failure:
        run(world, "broken", optimizer={"name": "sgd", "learning_rate": 3e38}, **changes)
    assert "state" in str(failure.value)
    folder = world / "broken"
    assert not (folder / "checkpoint").exists()
    for state in (folder / "resume").glob("step-*/*.safetensors"):
        from safetensors.numpy import load_file

        assert all(np.isfinite(t).all() for t in load_file(state).values())


def test_a_loss_that_is_not_finite_names_step_loss_and_rank(world: Path) -> None:
    from megatron_ext.training.accumulator import NonFinite

    with np.load(world / "reference" / "reference.npz") as file:
        arrays = dict(file)
    arrays["log_probs"][3] = -np.inf
    np.savez(world / "infinite.npz", **arrays)
    with pytest.raises(NonFinite, match=r"step \d: forget_loss is (inf|nan); first seen on rank 0 of 1"):
        run(world, "infinite", {"reference_logps": str(world / "infinite.npz")})


@pytest.mark.slow
def test_a_collapsed_model_is_flagged(world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ascent = {"forget_loss": {"name": "ga"}, "rule": {"name": "weighted-sum"}, "retain_loss": None}
    folder = run(world, "collapsed", epochs=5.0, optimizer={"learning_rate": 0.05}, **ascent)
    assert "collapsed" in summary(folder)["flags"]
    last = log(folder)[-1]
    assert last["retain_nll"] > np.log(worlds.VOCABULARY)
    assert "collapsed" in last["note"]
    assert "collapsed: retained text costs" in capsys.readouterr().err


def test_a_sound_run_warms_up_has_no_flag_and_logs_the_retain_loss_of_each_epoch(world: Path) -> None:
    folder = run(world, "sound", epochs=2.0, optimizer={"learning_rate": 1e-5})
    assert summary(folder)["flags"] == []
    measured = [line["retain_nll"] is not None for line in log(folder)]
    assert measured == [False, False, False, True] * 2  # 30 rows in batches of 8
    rates = [line["learning_rate"] for line in log(folder)]
    assert rates == pytest.approx([1e-5 * share for share in (0, 0.25, 0.5, 0.75, 1, 1, 1, 1)])  # an epoch of warm-up


def test_a_model_that_did_not_change_is_flagged(world: Path) -> None:
    folder = run(world, "same", optimizer={"name": "sgd", "learning_rate": 1e-30})
    assert "unchanged" in summary(folder)["flags"]


def test_max_steps_bounds_the_run(world: Path) -> None:
    assert len(log(run(world, "short", epochs=5.0, max_steps=3))) == 3


def test_alternatives_that_the_loss_does_not_read_are_refused(world: Path) -> None:
    with pytest.raises(SystemExit, match="the loss 'npo' reads no 'preferred_answers'"):
        run(world, "unread", {"preferred_answers": str(world / "retain.npz")})
