"""Faults of a cluster, caused: what a user sees, and that nothing is lost."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml

from pipeline.workflow.slurm_executor import QUESTION
from tests.cluster import ready
from tests.cluster.clone import Clone, held, slurm_jobs, wait_for
from tests.cluster.cluster import ACCOUNT, exists, without
from tests.cluster.test_cluster import BENCHMARK, EXPERIMENT, SITE

pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.timeout(1800)]


@pytest.fixture(scope="module")
def faulty(clone: Clone, image: Path) -> Path:
    """An experiment whose data are prepared in a job of a few seconds."""
    clone.site(**SITE, image=str(image))
    files = {"benchmarks/tiny.yaml": BENCHMARK, "experiments/faulty.yaml": EXPERIMENT}
    for name, text in files.items():
        clone.write(clone.folder.parent / "own" / name, yaml.safe_load(text) | {"name": Path(name).stem})
    return clone.folder.parent / "own" / "experiments" / "faulty.yaml"


@contextmanager
def away(cluster: Path, seconds: float = 0) -> Iterator[None]:
    """No controller, while the body runs and for that many seconds at least."""
    controller = int((cluster / "run/slurmctld.pid").read_text())
    os.kill(controller, signal.SIGTERM)  # it writes its state; killed within a second, it would run a job twice
    wait_for("the controller's end", lambda: not exists(controller), 60)
    begin = time.monotonic()
    try:
        yield
        time.sleep(max(0.0, begin + seconds - time.monotonic()))
    finally:
        subprocess.run(["slurmctld", "-f", cluster / "slurm.conf"], check=True)


@contextmanager
def stopped_before(folder: Path, call: int, program: str, *arguments: str) -> Iterator[tuple[Path, Path]]:
    """A call of a program with just these arguments, counted from 1, waits: one file tells that it has come, the other
    lets it go on."""
    met = folder / "met"
    shutil.rmtree(met, ignore_errors=True)
    met.mkdir()
    met.chmod(0o777)
    calls, reached, go = met / "calls", met / "reached", met / "go"
    place, shim = shutil.which(program), Path("/usr/local/bin") / program  # the first place where the user's PATH looks
    assert place and not shim.exists()
    shim.write_text(
        f"""#!/bin/sh
if [ "$*" = "{" ".join(arguments)}" ]; then
    echo >> {calls}
    if [ $(wc -l < {calls}) -eq {call} ]; then
        touch {reached}
        until [ -e {go} ]; do sleep 0.1; done
    fi
fi
exec {place} "$@"
"""
    )
    shim.chmod(0o755)
    try:
        yield reached, go
    finally:
        go.touch()
        shim.unlink()


def test_a_controller_that_is_away_is_waited_for(clone: Clone, faulty: Path, folder: Path) -> None:
    """For longer than a job takes, and than all attempts of one look at the jobs, which wait for seconds each."""
    with clone.running("data", "--forcerun", "prepare", experiment=faulty) as process:
        (job,) = wait_for("the job", lambda: slurm_jobs("RUNNING"), 120)
        script = held(job)  # Snakemake must not learn of the job's end before the controller is gone
        with away(folder / "cluster"):
            script.resume()
            wait_for("a word of it", lambda: "has not answered for" in process.log.read_text(), 240)
        process.wait()
    printed = process.outcome.printed
    print(printed)
    assert process.outcome.status == 0, printed
    assert "Slurm's controller has not answered for" in printed and "Slurm answers again, after" in printed
    assert (clone.folder / "results/faulty/data/tiny/manifest.json").is_file()


@pytest.mark.parametrize("seconds", [15, 60])
def test_a_controller_that_is_away_when_a_job_is_to_be_submitted(
    clone: Clone, faulty: Path, folder: Path, seconds: int
) -> None:
    """Since a moment before: the job waits, and is submitted once."""
    before = slurm_jobs()
    again = ("data", "--forcerun", "prepare", "--retries", "0")
    with (
        stopped_before(folder, 2, *QUESTION) as (
            reached,
            go,
        ),  # the first is asked at the start, of the site's partition
        clone.running(*again, experiment=faulty) as process,
    ):
        wait_for("the submission", reached.exists, 120)
        with away(folder / "cluster", seconds):
            go.touch()
        process.wait()
    printed = process.outcome.printed
    print(printed)
    assert process.outcome.status == 0, printed
    assert re.search(r"not answered for \d+ s; rule prepare waits to be submitted", printed), printed
    gone = re.search(r"Slurm answers again, after (\d+) s; rule prepare is submitted", printed)
    assert gone and seconds - 5 <= int(gone[1]) <= seconds + 30, printed
    assert len(slurm_jobs().keys() - before.keys()) == 1


def test_a_killed_snakemake_is_followed_by_the_same_command(clone: Clone, faulty: Path) -> None:
    """Its job, which outlives it, is cancelled: two never run the same step. Nothing has to be unlocked."""
    with clone.running("data", "--forcerun", "prepare", experiment=faulty) as process:
        (job,) = wait_for("the job", lambda: slurm_jobs("RUNNING"), 120)
        held(job)  # as a job of hours: it must not end before the same command looks for it
        os.killpg(process.process.pid, signal.SIGKILL)
        process.process.wait(20)
    done = clone.snakemake("data", "--forcerun", "prepare", experiment=faulty)
    print(done.printed)
    assert done.status == 0, done.printed
    assert "was killed: going on from there" in done.printed
    assert re.search(rf"^waiting until these have written their state: .*Slurm job {job}$", done.printed, re.MULTILINE)
    assert job in slurm_jobs("CANCELLED")


def test_what_cannot_run_is_said_in_few_lines(clone: Clone, faulty: Path, image: Path, folder: Path) -> None:
    """At once where it can be known at once; else with the reason, which only Slurm's own log has."""
    before = slurm_jobs()
    again = ("data", "--forcerun", "prepare", "--retries", "0")
    cut = folder / "own" / "cut.sif"
    cut.write_bytes(image.resolve().read_bytes()[:4096])
    cut.with_suffix(".json").write_text(image.resolve().with_suffix(".json").read_text())
    said = []
    for settings, expected in (
        ({"image": str(cut)}, "cut.sif' has 4096 bytes and not"),
        ({"image": str(image), "constraint": "a100"}, "Slurm takes no job with --partition=main --constraint=a100"),
    ):
        clone.site(**SITE, **settings)
        done = clone.snakemake(*again, experiment=faulty)
        said.append(done.printed)
        assert done.status == 2 and expected in done.printed, done.printed
        assert "Traceback" not in done.printed
    results = clone.folder / "results" / "faulty"
    clone.site(**SITE, image=str(image))
    results.chmod(0o555)
    done = clone.snakemake(*again, experiment=faulty)
    results.chmod(0o755)
    said.append(done.printed)
    assert done.status == 2 and "results/faulty' cannot be written: Permission denied" in done.printed, done.printed
    assert "Traceback" not in done.printed
    assert slurm_jobs().keys() <= before.keys(), "nothing was submitted; Slurm forgets old jobs meanwhile"
    cut.with_suffix(".json").unlink()
    clone.site(**SITE, image=str(cut))
    more = ("--retries", "1", "--set-resources", "prepare:mem_mb=300*attempt")
    done = clone.snakemake(*again[:-2], *more, experiment=faulty)
    clone.site(**SITE, image=str(image))
    asked = subprocess.run(["squeue", "--noheader", "--states=FAILED", "--format=%m"], capture_output=True, text=True)
    assert asked.stdout.split()[-2:] == ["300M", "600M"] or asked.stdout.split()[:2] == ["600M", "300M"], asked.stdout
    print(*said, done.printed, sep="\n-----\n")
    assert done.status == 1
    shown = done.printed[done.printed.index("failed: prepare, results/faulty/data/tiny (Slurm job") :].splitlines()[:5]
    assert "Slurm says FAILED" in shown[1] and "FATAL" in shown[2] and "results/faulty/logs/slurm/" in shown[3], shown
    assert len(done.printed.splitlines()) < 50, done.printed  # of two attempts


def test_a_node_without_apptainer_is_named_with_what_to_do(
    clone: Clone, faulty: Path, image: Path, folder: Path
) -> None:
    """The login node has it, so that only the job can know; left out in site.yaml, the same command goes on."""
    again = ("data", "--forcerun", "prepare", "--retries", "0")
    cluster = folder / "cluster"
    said = []
    with without(cluster, "n2", "apptainer"):
        for extra in ("--nodelist=n2", "--exclude=n2"):
            clone.site(**SITE, image=str(image), extra=extra)
            said.append(clone.snakemake(*again, experiment=faulty))
    clone.site(**SITE, image=str(image))
    print(*(done.printed for done in said), sep="\n-----\n")
    lacking, without_it = said
    assert lacking.status == 1, lacking.printed
    begin = lacking.printed.index("failed: prepare, results/faulty/data/tiny (Slurm job")
    shown = lacking.printed[begin:].splitlines()[:5]
    assert "Slurm says FAILED on " in shown[1] and "apptainer or singularity command has to be available" in shown[2]
    assert "results/faulty/logs/slurm/" in shown[3]
    assert "Apptainer must be on PATH: ask for it, or leave it out by `extra: --exclude=NODE`" in shown[4]
    assert without_it.status == 0, without_it.printed


def test_a_wrong_account_or_qos_is_named_and_a_right_one_is_used(
    clone: Clone, faulty: Path, image: Path, folder: Path
) -> None:
    """Only this has a database of accounts: without one Slurm takes any account."""
    again = ("data", "--forcerun", "prepare")
    said = []
    with ready.other_cluster(folder / "cluster", folder / "accounted", "--accounting"):
        for settings, reason in (
            ({"account": "projekt"}, "Invalid account or account/partition combination specified"),
            ({"account": ACCOUNT, "qos": "fast"}, "Invalid qos specification"),
        ):
            clone.site(**SITE, **settings, image=str(image))
            done = clone.snakemake(*again, experiment=faulty)
            said.append(done.printed)
            asked = " ".join(f"--{name}={value}" for name, value in settings.items())
            assert done.status == 2, done.printed
            assert re.search(f"Slurm takes no job with --partition=main {asked}: .*{reason}", done.printed), (
                done.printed
            )
            assert "Traceback" not in done.printed and not slurm_jobs(), "nothing was submitted"
        clone.site(**SITE, account=ACCOUNT, image=str(image))
        done = clone.snakemake(*again, experiment=faulty)
        used = subprocess.run(["squeue", "--noheader", "--states=all", "--format=%a"], capture_output=True, text=True)
    clone.site(**SITE, image=str(image))
    print(*said, done.printed, sep="\n-----\n")
    assert done.status == 0, done.printed
    assert used.stdout.split() == [ACCOUNT]
