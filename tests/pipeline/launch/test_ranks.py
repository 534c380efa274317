"""Starting several ranks: what srun and apptainer are told, what ranks see, and how failures and signals come out.

Programs of the same names stand in for srun, apptainer and scancel, and a short program for a step's.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from megatron_ext.config import Layout, Runtime
from megatron_ext.specs import ReferenceSpec
from pipeline.launch import ranks
from pipeline.workflow.jobs import canonical

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[3]
STAND_INS = Path(__file__).parent / "stand_ins"
IMAGE = "/images/unlearn.sif"

# Every Python of the test loads this first: it lets the step's program be another one.
CUSTOMIZE = """
import os, sys
if "pipeline.launch" in " ".join(sys.orig_argv):
    import pipeline.steps.programs
    pipeline.steps.programs.PROGRAMS["reference"] = "ranked"
"""
PROGRAM = """
import json, os, signal, socket, sys, time
from pathlib import Path

KEPT = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "MASTER_HOST", "UNLEARN_STORE",
        "CUDA_VISIBLE_DEVICES", "SLURM_JOB_ID", "SLURM_JOB_NODELIST", "OMP_NUM_THREADS", "HF_HUB_OFFLINE", "HF_TOKEN",
        "LEAKED")

def main(argv):
    folder = Path(argv[0]).parent
    rank = os.environ["RANK"]
    print(f"rank {rank} speaks", flush=True)
    asked = []
    signal.signal(signal.SIGTERM, lambda *_: asked.append(1))
    (folder / f"rank-{rank}.json").write_text(json.dumps({name: os.environ.get(name) for name in KEPT}))
    end = time.monotonic() + 60
    while not (folder / "rank-0.json").exists() and time.monotonic() < end:
        time.sleep(0.02)  # so that what happens to the first rank does not depend on which is faster
    if (folder / "fail").exists() and rank == "1":
        raise ValueError("the second rank is broken\\nin two lines")
    if (folder / "exit").exists():
        sys.exit("a message of one line")
    if (folder / "die").exists() and rank == "1":
        print("a last word", flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
    while (folder / "wait").exists() and not asked and time.monotonic() < end:
        time.sleep(0.02)
    if asked:
        time.sleep(0.5)  # a state is being written
        (folder / f"state-{rank}").write_text(str(len(asked)))
        sys.exit(143)
    if rank == "0":
        (folder / "summary.json").write_text("{}")
"""
SLURM = {"SLURM_JOB_ID": "70", "SLURMD_NODENAME": "n1"}


@pytest.fixture
def spec(tmp_path: Path) -> Path:
    (tmp_path / "ranked.py").write_text(PROGRAM)
    (tmp_path / "sitecustomize.py").write_text(CUSTOMIZE)
    (tmp_path / "stand_ins").mkdir()
    (tmp_path / "step").mkdir()
    return tmp_path / "step" / "spec.yaml"


def step(path: Path, count: int = 2) -> str:
    runtime = Runtime(layout=Layout(tensor=count), device="cpu", threads=3)
    output = path.parent
    return canonical(
        ReferenceSpec(checkpoint=output / "none", data=output / "none.npz", runtime=runtime, output=output)
    )


def environment(path: Path, **more: str) -> dict[str, str]:
    """Only what is named here: nothing of a job, a container or a launcher that the tests themselves run in."""
    python_path = os.pathsep.join([str(path.parents[1]), str(ROOT)])
    return {
        "PATH": os.pathsep.join([str(STAND_INS), os.environ.get("PATH", os.defpath)]),
        "PYTHONPATH": python_path,
        "APPTAINERENV_PYTHONPATH": python_path,
        "APPTAINER_CONTAINALL": "1",
        "STAND_INS": str(path.parents[1] / "stand_ins"),
        "STAND_IN_PYTHON": sys.executable,
        "LEAKED": "yes",
        **more,
    }


def command(path: Path, *options: str, count: int = 2) -> list[str]:
    return [sys.executable, "-m", "pipeline.launch", str(path), step(path, count), *options]


def start(path: Path, *options: str, count: int = 2, **more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(path, *options, count=count),
        cwd=ROOT,
        env=environment(path, **more),
        capture_output=True,
        text=True,
        timeout=100,
    )


def seen(path: Path, rank: int) -> dict[str, Any]:
    return json.loads((path.parent / f"rank-{rank}.json").read_text())


def said(path: Path, name: str) -> list[str]:
    return (path.parents[1] / "stand_ins" / name).read_text().splitlines()


def test_srun_starts_a_container_for_each_rank(spec: Path) -> None:
    inside = {"APPTAINERENV_UNLEARN_IMAGE": IMAGE, "APPTAINERENV_UNLEARN_IMAGE_SHA256": "ab12"}
    done = start(spec, "--image", IMAGE, "--nodes", "2", count=4, **SLURM, **inside)
    assert done.returncode == 0, done.stderr
    options = said(spec, "srun")[: said(spec, "srun").index("--")]
    expected = {"--nodes=2", "--ntasks=4", "--ntasks-per-node=2", "--cpus-per-task=3", "--kill-on-bad-exit=1"}
    assert expected <= set(options)
    found = [seen(spec, rank) for rank in range(4)]
    assert [(rank["RANK"], rank["LOCAL_RANK"]) for rank in found] == [("0", "0"), ("1", "1"), ("2", "0"), ("3", "1")]
    for rank in found:
        assert rank["UNLEARN_STORE"] is None
        assert rank["WORLD_SIZE"] == "4" and rank["MASTER_ADDR"] == "127.0.0.1" and rank["MASTER_HOST"]
        assert rank["MASTER_PORT"] == found[0]["MASTER_PORT"]
        assert (rank["SLURM_JOB_ID"], rank["SLURM_JOB_NODELIST"]) == ("70", "n[1-2]")
        assert rank["CUDA_VISIBLE_DEVICES"] == "0,1", "of the node where the rank runs"
        assert (rank["OMP_NUM_THREADS"], rank["HF_HUB_OFFLINE"], rank["LEAKED"]) == ("3", "1", None)
    for rank in range(4):
        called = said(spec, f"apptainer-{rank}")
        assert called[:-1] == ["--quiet", "exec", "--home", str(ROOT), "--pwd", str(ROOT), IMAGE]
    record = json.loads((spec.parent / "provenance.json").read_text())
    assert record["image"] == {"path": IMAGE, "sha256": "ab12"}, "of where the step ran"
    assert record["slurm"] == {"job": "70", "nodes": "n[1-2]"}
    assert record["layout"]["tensor"] == 4


def test_srun_without_an_image(spec: Path) -> None:
    done = start(spec, "--nodes", "1", **SLURM)
    assert done.returncode == 0, done.stderr
    assert [seen(spec, rank)["LOCAL_RANK"] for rank in range(2)] == ["0", "1"]
    store = {seen(spec, rank)["UNLEARN_STORE"] for rank in range(2)}.pop()
    assert seen(spec, 0)["MASTER_ADDR"] is None, "ranks of one node meet in a file"
    assert not Path(store).parent.exists(), "which goes with them"
    assert "--nodelist=n1" in said(spec, "srun"), "of the job's nodes, this is the one that has it"
    assert not list((spec.parents[1] / "stand_ins").glob("apptainer-*"))
    record = json.loads((spec.parent / "provenance.json").read_text())
    assert record["image"] is None and record["slurm"]["job"] == "70"


def task(*command: str, **slurm: str) -> subprocess.CompletedProcess[str]:
    """What srun starts for each rank, by itself."""
    given = {"PROCID": "1", "LOCALID": "1", "NTASKS": "2", "STEP_ID": "0", "JOB_ID": "70"}
    variables = {f"SLURM_{name}": value for name, value in given.items()} | {"SLURM_LAUNCH_NODE_IPADDR": "127.0.0.1"}
    variables = {name: value for name, value in (variables | slurm).items() if value}
    script = str(ROOT / "pipeline" / "launch" / "task.sh")
    return subprocess.run(
        ["sh", script, *command], env={"PATH": os.defpath} | variables, capture_output=True, text=True
    )


def test_the_port_follows_from_the_job_and_the_step() -> None:
    steps = (("70", "0"), ("70", "1"), ("71", "0"), ("4000000", "3"))
    printed = [task("printenv", "MASTER_PORT", SLURM_JOB_ID=job, SLURM_STEP_ID=step).stdout for job, step in steps]
    assert len(set(printed)) == 4
    assert all(15000 <= int(port) < 31000 for port in printed)


def test_what_srun_does_not_set_is_named_and_not_guessed(spec: Path) -> None:
    done = start(spec, "--image", IMAGE, "--nodes", "2", STAND_IN_OMIT="SLURM_STEP_ID", **SLURM)
    assert done.returncode != 0
    assert "SLURM_STEP_ID: srun did not set it" in done.stderr
    assert not (spec.parent / "rank-0.json").exists()
    for name in ("PROCID", "LOCALID", "NTASKS", "STEP_ID", "JOB_ID", "LAUNCH_NODE_IPADDR"):
        alone = task("true", **{f"SLURM_{name}": ""})
        assert alone.returncode != 0 and f"SLURM_{name}: srun did not set it" in alone.stderr


@pytest.mark.parametrize(
    ("options", "slurm", "message"),
    [
        (["--nodes", "2"], {}, "--nodes 2: needs a Slurm job, and SLURM_JOB_ID is not set"),
        (["--nodes", "2"], {"SLURM_JOB_ID": "70"}, "not on a node of it: SLURMD_NODENAME is not set"),
        (["--nodes", "3"], SLURM, "--nodes 3: the layout's 2 ranks do not spread evenly over 3 nodes"),
        (["--nodes", "0"], SLURM, "--nodes 0: "),
    ],
)
def test_what_cannot_be_started_here_is_refused(
    spec: Path, options: list[str], slurm: dict[str, str], message: str
) -> None:
    done = start(spec, *options, **slurm)
    assert done.returncode == 2
    assert message in done.stderr and "Traceback" not in done.stderr
    assert not list((spec.parents[1] / "stand_ins").iterdir())


@pytest.mark.parametrize(("missing", "options"), [("srun", ["--nodes", "1"]), ("apptainer", ["--image", IMAGE])])
def test_a_missing_program_is_named(spec: Path, tmp_path: Path, missing: str, options: list[str]) -> None:
    (tmp_path / "bin").mkdir()
    slurm = SLURM if missing == "srun" else {}
    done = start(spec, *options, PATH=str(tmp_path / "bin"), **slurm)
    assert done.returncode == 127
    assert f"{missing}: no such program on PATH" in done.stderr


def test_the_log_says_which_rank_failed_with_what(spec: Path, tmp_path: Path) -> None:
    (spec.parent / "fail").touch()
    (spec.parent / "wait").touch()
    log = tmp_path / "logs" / "reference.log"
    done = start(spec, "--image", IMAGE, "--nodes", "2", "--log", str(log), **SLURM)
    assert done.returncode == 137, "srun ended the other rank"
    assert done.stdout == ""
    assert done.stderr == f"{spec}: failed, exit status 137. Log: {log}.\n"
    lines = log.read_text().splitlines()
    assert lines[0].startswith("attempt 1 at 20") and lines[0].endswith("Slurm job 70")
    assert "rank 0 speaks" in lines and "rank 1 speaks" not in lines
    assert any(line.startswith("srun: error: n2: task 1") for line in lines)
    first = next(i for i, line in enumerate(lines) if line.startswith("first error of a rank, rank 1 of 2 on n1"))
    assert lines[first].endswith(": ValueError: the second rank is broken")
    own = tmp_path / "logs" / "attempts" / "reference.1.ranks" / "1.log"
    assert lines[first + 1 :] == [f"last lines of {own}:", *(f"    {line}" for line in own.read_text().splitlines())]
    assert lines[-1] == "    in two lines" and "    rank 1 speaks" in lines


def test_a_rank_that_was_killed_is_told_from_one_that_failed(spec: Path, tmp_path: Path) -> None:
    (spec.parent / "die").touch()
    (spec.parent / "wait").touch()
    log = tmp_path / "reference.log"
    done = start(spec, "--nodes", "2", "--log", str(log), **SLURM)
    assert done.returncode == 137
    end = log.read_text().partition("_step_signal: Terminating")[2]
    assert "srun: error: n2: task 1: Killed" in end and "task 0" not in end.partition("no rank names")[2]
    assert "a last word" in end and "1.log" in end


def test_ranks_that_fell_with_another_are_told_from_it(tmp_path: Path) -> None:
    (tmp_path / "2.log").write_text("\n".join(["a traceback", "RuntimeError: reset"]))
    log = tmp_path / "log"
    log.write_text(
        "rank 1 of 4 on n1 failed at 2026-01-01T10:00:02.500+00:00: RuntimeError: closed\n"
        "rank 2 of 4 on n2 failed at 2026-01-01T10:00:02.400+00:00: RuntimeError: reset\n"
        "srun: error: n1: task 0: Out Of Memory\n"
        "srun: launch/slurm: _step_signal: Terminating StepId=1.0\n"
        "srun: error: n2: task 3: Killed\n"
        "srun: error: n2: tasks 1-2: Exited with exit code 1\n"
    )
    assert ranks.explanation(log, tmp_path).splitlines() == [
        "srun: error: n1: task 0: Out Of Memory",
        "first error of a rank, rank 2 of 4 on n2 failed at 2026-01-01T10:00:02.400+00:00: RuntimeError: reset",
        "after it: rank 1",
        f"last lines of {tmp_path / '2.log'}:",
        "    a traceback",
        "    RuntimeError: reset",
    ]
    assert not ranks.stopped(log)


def test_a_message_in_place_of_an_error(spec: Path, tmp_path: Path) -> None:
    (spec.parent / "exit").touch()
    log = tmp_path / "reference.log"
    status = start(spec, "--nodes", "1", "--log", str(log), **SLURM).returncode
    assert status in (1, 137), "the other rank may have been ended before it came to its own message"
    assert re.search(r"^first error of a rank, .* failed at .*: a message of one line$", log.read_text(), re.MULTILINE)
    assert "Traceback" not in log.read_text()


def wait_for(path: Path, process: subprocess.Popen[Any], names: list[str]) -> None:
    deadline = time.monotonic() + 60
    while not all((path.parent / name).exists() for name in names):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)


def test_sigterm_reaches_ranks_under_srun_once(spec: Path, tmp_path: Path) -> None:
    """Of two signals, the first; one alone is sent by the cluster's tests, with a real srun."""
    (spec.parent / "wait").touch()
    log = tmp_path / "reference.log"
    call = command(spec, "--image", IMAGE, "--nodes", "2", "--log", str(log))
    with subprocess.Popen(call, cwd=ROOT, env=environment(spec, **SLURM), stderr=subprocess.PIPE) as process:
        wait_for(spec, process, ["rank-0.json", "rank-1.json"])
        for _ in range(2):
            process.send_signal(signal.SIGTERM)
            time.sleep(0.1)
        _, errors = process.communicate(timeout=50)
    assert process.returncode == 143
    assert [(spec.parent / f"state-{rank}").read_text() for rank in range(2)] == ["1", "1"]
    assert said(spec, "scancel") == ["--signal=TERM", "70"]
    assert f"{spec}: stopped as asked, exit status 143. Log: {log}." in errors.decode()
    assert "first error" not in log.read_text() and "no rank names" not in log.read_text()
    assert not (spec.parent / "provenance.json").exists()


def test_a_container_on_this_machine_holds_all_ranks(spec: Path, tmp_path: Path) -> None:
    log = tmp_path / "reference.log"
    done = start(spec, "--image", IMAGE, "--log", str(log))
    assert done.returncode == 0, log.read_text()
    assert said(spec, "apptainer-all")[-3:-1] == [IMAGE, "alone"], "in a container of which they see nothing else"
    assert [seen(spec, rank)["LOCAL_RANK"] for rank in range(2)] == ["0", "1"]
    assert seen(spec, 0)["LEAKED"] is None
    assert "rank 0 speaks" in log.read_text()
    assert "rank 1 speaks" in (tmp_path / "attempts" / "reference.1.ranks" / "1.log").read_text()
    assert (spec.parent / "provenance.json").exists()


@pytest.mark.parametrize(
    ("how", "status", "words"),
    [("fail", 1, "first error of a rank, rank 1 of 2 on "), ("die", 137, "rank 1 of 2: Killed")],
)
def test_ranks_of_this_machine_end_together(spec: Path, tmp_path: Path, how: str, status: int, words: str) -> None:
    (spec.parent / how).touch()
    (spec.parent / "wait").touch()  # rank 0 must not be waited for
    log = tmp_path / "reference.log"
    done = start(spec, "--log", str(log))
    assert done.returncode == status
    assert (spec.parent / "state-0").read_text() == "1", "rank 0 was told to end, and not killed at once"
    end = log.read_text().splitlines()
    own = tmp_path / "attempts" / "reference.1.ranks" / "1.log"
    assert any(line.startswith(words) for line in end[end.index(f"last lines of {own}:") - 2 :])
    assert seen(spec, 0)["MASTER_ADDR"] is None and seen(spec, 0)["LEAKED"] == "yes"
    assert not Path(seen(spec, 0)["UNLEARN_STORE"]).parent.exists()


def test_containers_keep_their_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "squashfuse_ll").write_text("#!/bin/sh\n")
    (tmp_path / "squashfuse_ll").chmod(0o755)
    assert ranks.shielded(str(tmp_path)) == str(tmp_path), "one that the shield would not find is not shielded"
    assert ranks.shielded("/nowhere") == "/nowhere"
    monkeypatch.setattr(ranks, "SHIELDED", (str(tmp_path),))
    path = ranks.shielded(str(tmp_path))
    assert path == f"{ranks.SHIELD}{os.pathsep}{tmp_path}"
    assert ranks.shielded(path) == path
    assert os.access(ranks.SHIELD / "squashfuse_ll", os.X_OK)


def test_the_shield_is_the_program_itself() -> None:
    program = shutil.which("squashfuse_ll", path=os.pathsep.join(ranks.SHIELDED))  # where the shield looks, not on PATH
    if program is None:
        pytest.skip("no squashfuse")
    real = subprocess.run([program, "--help"], capture_output=True, text=True)
    shield = subprocess.run([ranks.SHIELD / "squashfuse_ll", "--help"], capture_output=True, text=True, env={})
    assert (shield.returncode, shield.stderr.count("\n")) == (real.returncode, real.stderr.count("\n"))
    assert "there is no" not in shield.stderr
