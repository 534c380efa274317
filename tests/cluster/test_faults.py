"""Faults of a cluster, caused: what a user sees, and that nothing is lost."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
import yaml

from tests.cluster.clone import Clone, slurm_jobs, wait_for
from tests.cluster.test_cluster import BENCHMARK, EXPERIMENT, SITE

pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def faulty(clone: Clone, image: Path) -> Path:
    """An experiment whose data are prepared in a job of a few seconds."""
    clone.site(**SITE, image=str(image))
    files = {"benchmarks/tiny.yaml": BENCHMARK, "experiments/faulty.yaml": EXPERIMENT}
    for name, text in files.items():
        clone.write(clone.folder.parent / "own" / name, yaml.safe_load(text) | {"name": Path(name).stem})
    return clone.folder.parent / "own" / "experiments" / "faulty.yaml"


def test_a_controller_that_is_away_is_waited_for(clone: Clone, faulty: Path, folder: Path) -> None:
    """For longer than a job takes, and than all attempts of one look at the jobs."""
    with clone.running("data", experiment=faulty, timeout=240) as process:
        wait_for("the job", lambda: slurm_jobs("RUNNING"), 60)
        controller = int((folder / "cluster/run/slurmctld.pid").read_text())
        os.kill(controller, signal.SIGTERM)  # it writes its state; killed within a second, it would run the job twice
        wait_for("the controller's end", lambda: not Path(f"/proc/{controller}").exists(), 20)
        time.sleep(25)
        subprocess.run(["slurmctld", "-f", folder / "cluster/slurm.conf"], check=True)
        process.wait()
    printed = process.outcome.printed
    print(printed)
    assert process.outcome.status == 0, printed
    assert "Slurm's controller has not answered for" in printed and "Slurm answers again, after" in printed
    assert (clone.folder / "results/faulty/data/tiny/manifest.json").is_file()
