"""A run that is killed and started again ends as if nothing had happened; a run that cannot go on says why."""

from __future__ import annotations

import importlib
import json
import os
import random
import signal
import tempfile
import time
from dataclasses import dataclass
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import pytest

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
    assert "another configuration" in finish("train", changed)
    assert len(steps(world / "other")) == 20
