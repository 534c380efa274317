"""What several runs and nodes share, and what becomes of it: a clone, a step's folder, an image, a disk."""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.cluster.clone import Clone, held, slurm_jobs, wait_for
from tests.cluster.test_cluster import BENCHMARK, EXPERIMENT, LONG, SITE

pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.timeout(1800)]

DISK_MIB = 64


@pytest.fixture(scope="module")
def experiments(clone: Clone, image: Path) -> Path:
    """The folder of experiments: two whose data take seconds, and a training of minutes."""
    clone.site(**SITE, image=str(image))
    own = clone.folder.parent / "own"
    clone.write(own / "benchmarks/tiny.yaml", yaml.safe_load(BENCHMARK))
    for name, text in (("one", EXPERIMENT), ("two", EXPERIMENT), ("full", EXPERIMENT), ("writers", LONG)):
        clone.write(own / "experiments" / f"{name}.yaml", yaml.safe_load(text) | {"name": name})
    return own / "experiments"


def test_two_experiments_of_a_clone_leave_each_other_alone(clone: Clone, experiments: Path) -> None:
    """One begins and ends while a job of the other, which has written no word yet, is running."""
    one, two = (experiments / f"{name}.yaml" for name in ("one", "two"))
    with clone.running("data", experiment=one) as process:
        (job,) = wait_for("the job", lambda: slurm_jobs("RUNNING"), 120)
        script = held(job)
        other = clone.snakemake("data", experiment=two)
        script.resume()
        process.wait()
    print(process.outcome.printed, other.printed, sep="\n-----\n")
    for name, done in (("one", process.outcome), ("two", other)):
        assert done.status == 0 and "failed" not in done.printed, done.printed
        assert (clone.folder / "results" / name / "data/tiny/manifest.json").is_file()
        assert len(list((clone.folder / "results" / name / "logs/attempts").iterdir())) == 1, "nothing was retried"


def test_a_second_writer_of_a_step_is_refused(clone: Clone, experiments: Path, image: Path) -> None:
    """On another node, as a user types it who has forgotten the first; that one goes on."""
    run = clone.folder / "results/writers/models/target"
    log = clone.folder / "results/writers/logs/models/target.log"
    target = str((run / "checkpoint").relative_to(clone.folder))
    with clone.running(target, "--retries", "0", experiment=experiments / "writers.yaml") as process:
        wait_for("the training", lambda: log.is_file() and "/10000" in log.read_text(), 240)
        ((job, _),) = slurm_jobs("RUNNING").items()
        (node,) = _asked("squeue", "--noheader", f"--job={job}", "--format=%N")
        (other,) = {"n1", "n2"} - {node}
        step = [".venv/bin/python", "-m", "pipeline.launch", str((run / "spec.yaml").relative_to(clone.folder))]
        second = clone.user.run("srun", f"--nodelist={other}", *step, "--image", image, cwd=clone.folder, timeout=120)
        alive = slurm_jobs("RUNNING")
        process.interrupt()
    print(second.printed, process.outcome.printed, sep="\n-----\n")
    assert second.status != 0
    assert re.search(rf"another run is alive: Slurm job {job}, process \d+ on {node}, started", second.printed)
    assert "Nothing was done: it still writes here" in second.printed and "Traceback" not in second.printed
    assert job in alive, "the first one goes on"
    wait_for("the state of the first", lambda: list(run.glob("resume/step-*")), 90)


def test_an_image_of_another_checkout_is_said_and_can_be_refused(clone: Clone, experiments: Path, image: Path) -> None:
    """It is used as it is, since the steps run the clone's code."""
    built = image.resolve()
    old = clone.folder.parent / "own" / "unlearn-cpu-0123456789ab.sif"
    old.unlink(missing_ok=True)
    os.link(built, old)
    record = json.loads(built.with_suffix(".json").read_text())
    old.with_suffix(".json").write_text(json.dumps(record | {"content": "0123456789ab" + "0" * 52}))
    said = []
    for settings in ({}, {"require_current_image": True}):
        clone.site(**SITE, image=str(old), **settings)
        said.append(clone.snakemake("data", "--forcerun", "prepare", experiment=experiments / "one.yaml"))
    clone.site(**SITE, image=str(image))
    print(*(done.printed for done in said), sep="\n-----\n")
    used, refused = said
    for done in said:
        assert f"image: {old.name} is not of this checkout, whose versions and sources would make" in done.printed
    assert used.status == 0 and refused.status == 2, refused.printed
    assert "Traceback" not in refused.printed
    assert refused.printed.endswith(". site.yaml: require_current_image: true\n"), "and nothing was submitted after it"


@pytest.fixture
def disk(clone: Clone) -> Iterator[Path]:
    """The results of the experiment ``full`` on a small disk of their own."""
    results = clone.folder / "results" / "full"
    results.mkdir(parents=True, exist_ok=True)
    options = f"size={DISK_MIB}m,mode=755,uid={results.parent.stat().st_uid}"
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", results], check=True)
    yield results
    subprocess.run(["umount", "--lazy", results], check=True)


def test_a_full_disk_is_named_and_then_gone_on_from(clone: Clone, experiments: Path, disk: Path) -> None:
    """It is full when the job begins to write: its results, its log and Slurm's own lie there."""
    full = experiments / "full.yaml"
    ballast = disk / "ballast"
    with clone.running("data", "--retries", "0", experiment=full) as process:
        (job,) = wait_for("the job", lambda: slurm_jobs("RUNNING"), 120)
        script = held(job)
        with ballast.open("wb") as file:
            left = os.statvfs(disk)
            os.posix_fallocate(file.fileno(), 0, left.f_bavail * left.f_frsize)
        script.resume()
        process.wait()
    ballast.unlink()
    print(process.outcome.printed)
    assert process.outcome.status == 1, process.outcome.printed
    assert "results/full/logs, where its log lies, cannot be written: [Errno 28] No space" in process.outcome.printed
    assert "what to do: make room, then start the same command again" in process.outcome.printed
    assert not (disk / "data/tiny/manifest.json").exists()
    done = clone.snakemake("data", experiment=full)
    assert done.status == 0, done.printed
    assert (disk / "data/tiny/manifest.json").is_file()
    hidden = [path for path in disk.rglob(".*") if path.is_file() and not path.name.startswith(".snakemake")]
    assert not hidden, "what was left half-written is gone"


def _asked(*command: str) -> list[str]:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
