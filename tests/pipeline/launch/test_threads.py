"""A step runs with the threads that its specification states, whatever the machine and the environment say."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import worlds

ROOT = Path(__file__).parents[3]
# The launcher runs a step of one rank in its own process, which can be asked afterwards.
PROGRAM = "from pipeline.launch.__main__ import main; import sys; s = main(sys.argv[1:]); import torch; "
PROGRAM += "print('threads', torch.get_num_threads()); sys.exit(s)"
THREADS = 3


def train(folder: Path, name: str, cores: set[int], **environment: str) -> tuple[bytes, bytes]:
    """Weights and steps of a training on these cores, in an environment that asks for other threads."""
    spec = worlds.train_spec(folder, name, steps=2, runtime={"device": "cpu", "threads": THREADS})
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(spec)],
        cwd=ROOT,
        env={**os.environ, "OMP_WAIT_POLICY": "PASSIVE", **environment},  # threads without a core do not spin
        preexec_fn=lambda: os.sched_setaffinity(0, cores),
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    assert f"threads {THREADS}\n" in done.stdout
    steps = [line.split(b', "seconds"')[0] for line in (folder / name / "steps.jsonl").read_bytes().splitlines()]
    return (folder / name / "checkpoint" / "model.safetensors").read_bytes(), b"\n".join(steps)


@pytest.mark.slow
def test_fewer_cores_and_other_variables_give_the_same_bits(tmp_path: Path) -> None:
    worlds.write_data(tmp_path)
    cores = os.sched_getaffinity(0)
    few = train(tmp_path, "few", {min(cores)}, OMP_NUM_THREADS="1", OMP_THREAD_LIMIT="1", MKL_DYNAMIC="TRUE")
    many = train(tmp_path, "many", cores, OMP_NUM_THREADS="8", MKL_NUM_THREADS="8", OMP_DYNAMIC="TRUE")
    assert few == many
