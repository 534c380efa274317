"""A run that is killed and started again ends as if nothing had happened; a run that cannot go on says why."""

from __future__ import annotations

import importlib
import json
import os
import random
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import Tensor

from megatron_ext.distributed.process_groups import Ranks
from megatron_ext.training.resume import Resume
from megatron_ext.training.step_log import StepLog
from tests.support import distributed, worlds
from tests.support.distributed import environments

pytestmark = pytest.mark.ranks

TIMES = ("seconds", "peak_memory_bytes")  # what differs between two runs of the same steps


@dataclass
class Started:
    """A program's ranks, forked as ``tests.support.distributed`` does, and what the first one prints."""

    ranks: list[ForkServerProcess]
    log: Path

    def end(self, timeout: float) -> tuple[list[int | None], str]:
        """Exit statuses by rank, and what was printed, when all have ended."""
        deadline = time.monotonic() + timeout
        for rank in self.ranks:
            rank.join(max(0.0, deadline - time.monotonic()))
        codes = [rank.exitcode for rank in self.ranks]
        for rank in self.ranks:
            rank.kill()
        return codes, self.log.read_text()


def start(program: str, spec: Path, ranks: int = 1) -> Started:
    log = Path(tempfile.mkdtemp(dir=spec.parent)) / "0.log"
    started = [
        distributed.start(run, program, spec, output=log.with_name(f"{rank}.log"), environment=environment)
        for rank, environment in enumerate(environments(ranks, log.with_name("store")))
    ]
    return Started(started, log)


def run(program: str, spec: Path) -> None:
    importlib.import_module(f"megatron_ext.steps.{program}").main([str(spec)])


def finish(program: str, spec: Path, ranks: int = 1) -> str:
    codes, printed = start(program, spec, ranks).end(200)
    assert codes == [0] * ranks, printed
    return printed


def wait_for_step(started: Started, log: Path, step: int) -> None:
    end = time.monotonic() + 120
    while not log.exists() or log.read_bytes().count(b"\n") < step:
        assert started.ranks[0].exitcode is None, f"ended before step {step}:\n{started.log.read_text()}"
        assert time.monotonic() < end, f"step {step} was never reached"
        time.sleep(0.005)


def steps(folder: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (folder / "steps.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in TIMES} for line in lines]


def weights(folder: Path) -> bytes:
    return (folder / "checkpoint" / "model.safetensors").read_bytes()


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data and a target, trained once, and the reference log-probabilities."""
    folder = tmp_path_factory.mktemp("world")
    worlds.write_data(folder)
    finish("train", worlds.train_spec(folder))
    finish("reference", worlds.reference_spec(folder))
    return folder


TRAINING = {"steps": 24, "checkpoint_every": 6}


@pytest.fixture(scope="module")
def trained(world: Path) -> Path:
    """A run that nothing stopped."""
    finish("train", worlds.train_spec(world, "whole", **TRAINING))
    return world / "whole"


@pytest.mark.slow
@pytest.mark.parametrize("when", ["before the first state", "anywhere"])
def test_training_killed_and_started_again_is_bit_identical(world: Path, trained: Path, when: str) -> None:
    kill_at = 3 if when != "anywhere" else random.SystemRandom().randrange(7, 20)
    print(f"killed after step {kill_at}")
    cut = worlds.train_spec(world, f"cut-{kill_at}", **TRAINING)
    started = start("train", cut)
    output = world / f"cut-{kill_at}"
    wait_for_step(started, output / "resume" / "steps.jsonl", kill_at)
    started.ranks[0].kill()
    started.end(60)
    assert not (output / "checkpoint").exists(), "nothing unfinished has its final name"

    said = finish("train", cut)

    if when == "anywhere":
        assert "going on after step" in said
    assert weights(output) == weights(trained)
    assert steps(output) == steps(trained)
    assert not (output / "resume").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("precision", "layout", "rule"),
    [
        ("fp32", {"data": 2, "distributed_optimizer": True}, {"name": "gru", "mu": 0.1}),  # keeps a vector, in shards
        ("bf16", {"data": 2, "distributed_optimizer": True}, {"name": "blur"}),
        ("bf16", {"pipeline": 2}, {"name": "blur"}),
    ],
)
def test_unlearning_on_two_ranks_survives_the_death_of_one(
    world: Path, precision: str, layout: dict[str, Any], rule: dict[str, Any]
) -> None:
    runtime = {"device": "cpu", "timeout_seconds": 60.0, "precision": precision, "layout": layout}
    changes = {"epochs": 3.0, "checkpoint_every": 5, "runtime": runtime, "rule": rule}
    ends = [world / f"{end}-{precision}-{'-'.join(layout)}" for end in ("whole", "cut")]
    whole, cut = (worlds.unlearn_spec(world, end.name, **changes) for end in ends)
    finish("unlearn", whole, ranks=2)
    started = start("unlearn", cut, ranks=2)
    wait_for_step(started, ends[1] / "resume" / "steps.jsonl", 7)
    started.ranks[1].kill()
    codes, printed = started.end(60)
    assert codes[1] == -signal.SIGKILL
    assert codes[0] not in (0, None), f"the other rank waited longer than the time-out\n{printed}"

    assert "going on after step" in finish("unlearn", cut, ranks=2)

    assert weights(ends[1]) == weights(ends[0]) != weights(world / "target")
    assert steps(ends[1]) == steps(ends[0])


@pytest.mark.slow
def test_sigterm_writes_a_state_and_ends_in_order(world: Path) -> None:
    spec = worlds.unlearn_spec(world, "asked", epochs=8.0)  # writes no states by itself
    started = start("unlearn", spec)
    wait_for_step(started, world / "asked" / "resume" / "steps.jsonl", 10)
    for number in (signal.SIGTERM, signal.SIGURG, signal.SIGTERM):  # as a scheduler, a container and a launcher send it
        os.kill(started.ranks[0].pid or 0, number)
    codes, output = started.end(60)
    assert codes == [143], output
    assert "asked to stop" in output
    assert "going on after step" in finish("unlearn", spec)
    assert [line["step"] for line in steps(world / "asked")] == list(range(32))


@pytest.mark.slow
def test_a_state_of_another_configuration_is_dropped_aloud(world: Path) -> None:
    first = worlds.train_spec(world, "other", steps=500, checkpoint_every=5)
    started = start("train", first)
    wait_for_step(started, world / "other" / "resume" / "steps.jsonl", 8)
    started.ranks[0].kill()
    started.end(60)
    changed = worlds.train_spec(world, "other", steps=20, checkpoint_every=5)
    said = finish("train", changed)
    assert "is of another configuration, other inputs or other code (spec.steps): starting from the beginning" in said
    assert len(steps(world / "other")) == 20


@pytest.mark.slow
def test_a_damaged_file_of_one_rank_is_left_out_by_all(world: Path) -> None:
    runtime = {"device": "cpu", "timeout_seconds": 60.0, "layout": {"data": 2, "distributed_optimizer": True}}
    spec = worlds.train_spec(world, "damaged", steps=12, checkpoint_every=5, runtime=runtime)
    started = start("train", spec, ranks=2)
    wait_for_step(started, world / "damaged" / "resume" / "steps.jsonl", 7)
    started.ranks[0].kill()
    started.end(60)
    (file,) = (world / "damaged" / "resume").glob("step-*/*-data-1.safetensors")
    file.write_bytes(file.read_bytes()[:1000])
    said = finish("train", spec, ranks=2)
    assert f"a state cannot be read and is left out: {file}" in said and "going on" not in said
    assert [line["step"] for line in steps(world / "damaged")] == list(range(12))


class Kept(Resume):
    """The states of a run whose only tensor is a number of steps."""

    def _tensors(self) -> Iterator[tuple[str, Tensor]]:
        yield "value", torch.tensor(float(self.log.count()))

    def _groups(self) -> Iterator[tuple[str, dict[str, Any]]]:
        return iter(())

    def _load(self, path: Path) -> None:
        with safe_open(path, framework="pt") as file:
            self.loaded = float(file.get_tensor("value"))


def kept(folder: Path, alone: Ranks, **identity: Any) -> Kept:
    return Kept(folder, {"spec": {"seed": 0, **identity}}, SimpleNamespace(ranks=alone))  # type: ignore[arg-type]


@pytest.fixture
def states(tmp_path: Path, alone: Ranks) -> Path:
    """The folder of a run with a state after two steps and one after three, as a machine that stops can leave it."""
    run = kept(tmp_path, alone)
    assert run.restore() == 0
    for step in range(3):
        run.log.write({"step": step})
        if step:
            run.save(step + 1)
            (run.folder / f"step-{step + 1:08d}").rename(tmp_path / f"{step + 1}")
    for step in (2, 3):
        (tmp_path / f"{step}").rename(run.folder / f"step-{step:08d}")
    run.log.close()
    return run.folder


def state_cut(state: Path) -> None:
    (state / "state.json").write_text("")


def state_gone(state: Path) -> None:
    (state / "state.json").unlink()


def tensors_cut(state: Path) -> None:
    (file,) = state.glob("*.safetensors")
    file.write_bytes(file.read_bytes()[:-1])


def tensors_gone(state: Path) -> None:
    (file,) = state.glob("*.safetensors")
    file.unlink()


def log_cut(state: Path) -> None:
    (state.parent / "steps.jsonl").write_text('{"step": 0}\n{"step": 1}\n')


@pytest.mark.slow
@pytest.mark.parametrize("damage", [state_cut, state_gone, tensors_cut, tensors_gone, log_cut])
def test_of_a_state_that_cannot_be_read_the_one_before_is_used(
    damage: Callable[[Path], None], states: Path, alone: Ranks, capsys: pytest.CaptureFixture[str]
) -> None:
    assert kept(states.parent, alone).restore() == 3
    damage(states / "step-00000003")
    run = kept(states.parent, alone)
    assert run.restore() == 2 and run.loaded == 2
    said = capsys.readouterr().out
    assert "a state cannot be read and is left out: " in said and str(states) in said
    assert "going on after step 2" in said
    run.save(2)
    assert [state.name for state in states.glob("step-*")] == ["step-00000002"]
    run.log.close()
    if damage is not log_cut:
        damage(states / "step-00000002")
        assert kept(states.parent, alone).restore() == 0
        assert not list(states.glob("step-*"))


@pytest.mark.slow
def test_a_state_of_other_code_is_dropped_aloud(
    states: Path, alone: Ranks, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("megatron_ext.checkpoint.identity.code", lambda: "other")
    monkeypatch.setattr("megatron_ext.checkpoint.identity.PACKAGES", ("torch",))
    assert kept(states.parent, alone, seed=1).restore() == 0
    assert "(code, spec.seed, versions.megatron-core, versions.numpy): starting from" in capsys.readouterr().out


@pytest.mark.parametrize("damage", [b"\xff", b'"no object"\n', b"{\n"])
def test_lines_of_a_log_are_counted_up_to_the_first_that_is_none(damage: bytes, tmp_path: Path) -> None:
    """A state that needs more lines than these is left out, in place of a run that ends at each start."""
    log = StepLog(tmp_path / "steps.jsonl", active=True)
    assert log.count() == 0
    log.path.write_bytes(b'{"step": 1}\n{"step": 2}\n' + damage)
    assert log.count() == 2
    log.open(2)
    log.close()
    assert log.path.read_text() == '{"step": 1}\n{"step": 2}\n'
