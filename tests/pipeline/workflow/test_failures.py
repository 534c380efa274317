"""A failed job in five lines."""

from __future__ import annotations

import logging
import os
import resource
import traceback
from pathlib import Path

import pytest

from pipeline.workflow import failures

SLURM = "SLURM-job '5' failed, SLURM status is: '{}'. Detailed failure reason unavailable"
BANNER = "\nSNAKEMAKE\n=========\n  Date: today\nBuilding DAG of jobs...\nWorkflowError:\n"
# What lies in the step's own log and in Slurm's, what Slurm says, and what the lines must name.
CASES = {
    "a truncated image": (
        "",
        f"{BANNER}FATAL:   container creation failed: while mounting image: squashfuse exited\n",
        "FAILED",
        (
            "did not get to write",
            "FATAL: container creation failed",
            "open /dev/fuse",
            "slurm.log",
        ),
    ),
    "no Apptainer on the node": (
        None,
        f"{BANNER}/usr/bin/bash: line 1: apptainer: command not found\n",
        "FAILED",
        ("apptainer: command not found", "Apptainer must be on PATH", "slurm.log"),
    ),
    "out of memory": (
        "",
        "slurmstepd: error: Exceeded job memory limit\n",
        "OUT_OF_MEMORY",
        ("next attempt asks for more",),
    ),
    "memory while it works": (
        "attempt 1\ntrain target:   9%|#  | 912/10000\n",
        f"{BANNER}slurmstepd: error: JobId=5 exceeded memory limit (300 > 200), being killed\n",
        "FAILED",
        ("exceeded memory limit (300", "the next attempt asks for more", "own.log, ", "slurm.log"),
    ),
    "time": (
        "attempt 1\nasked to stop: the state after step 4 of 9 is in r/resume\n",
        "slurmstepd: error: JOB 5 ON n1 CANCELLED AT 2026 DUE TO TIME LIMIT\n",
        "TIMEOUT",
        ("Slurm says TIMEOUT; asked to stop: the state after step 4 of 9", "more time", "own.log"),
    ),
    "a rank": (
        "attempt 1\nrank 2 of 4 on n1 failed at 2026-01-01T00:00:02.000: RuntimeError: Connection closed\n"
        "rank 3 of 4 on n2 failed at 2026-01-01T00:00:01.000: torch.OutOfMemoryError: CUDA out of memory. Tried\n",
        BANNER,
        "FAILED",
        ("first error: rank 3 of 4 on n2 failed", "smaller micro_batch", "own.log"),
    ),
    "a rank that was killed leads": (
        "attempt 1\nrank 0 of 4 on n1 failed at 2026-01-01T00:00:02.000: RuntimeError: Connection closed\n"
        "srun: error: n2: task 3: Killed\n",
        BANNER,
        "FAILED",
        ("a rank was killed", "first error: srun: error: n2: task 3: Killed", "own.log"),
    ),
    "an error of Python": (
        "attempt 1\nTraceback (most recent call last):\n  File x\n"
        "pipeline.data.errors.DataError: f.jsonl, row 3: no text\x1b[2J\n",
        BANNER,
        "FAILED",
        ("DataError: f.jsonl, row 3: no text\\x1b[2J", "correct it", "own.log"),
    ),
    "nothing is said": ("", BANNER.partition("\n")[0], "FAILED", ("no log says anything",)),
}


@pytest.mark.parametrize("name", CASES)
def test_five_lines_name_cause_log_and_remedy(name: str, tmp_path: Path) -> None:
    own, slurm, status, expected = CASES[name]
    logs = [tmp_path / "own.log", tmp_path / "slurm.log"]
    for log, text in zip(logs, (own, slurm), strict=True):
        if text is not None:
            log.write_text(text)
    lines = failures.explained("train: target", SLURM.format(status), logs)
    assert len(lines) == 5 and lines[0] == "failed: train: target" and all(len(line) < 400 for line in lines)
    assert f"Slurm says {status}" in lines[1]
    for text in expected:
        assert text in "\n".join(lines), lines


def test_what_an_earlier_attempt_wrote_is_not_taken_for_this_ones(tmp_path: Path) -> None:
    """Only here did the step write a log before, and none this time: the reason is in Slurm's alone."""
    own, slurm = tmp_path / "own.log", tmp_path / "slurm.log"
    own.write_text("attempt 1\nValueError: mended since\n")
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter())
    handler.addFilter(lambda record: getattr(record, "event", None) != "job_info")  # as `--quiet` has it
    handler.formatter._format_job_error = None  # type: ignore[union-attr] # what marks Snakemake's own
    failures.shorten([handler])
    handler.filter(logging.makeLogRecord({"event": "job_info", "log": [str(own)], "msg": ""}))
    missing = "The apptainer or singularity command has to be available in order to use it."
    slurm.write_text(f"{BANNER}".replace("  Date: today\n", "  Date: today\n  Host: n2\n") + missing)

    lines = failures.explained("data", SLURM.format("FAILED"), [own, slurm])

    assert lines[1:4] == [
        "  what happened: Slurm says FAILED on n2",
        f"  first error: {missing}",
        f"  log: {slurm}",
    ]
    assert "Apptainer must be on PATH" in lines[4]
    own.write_text("attempt 2\nValueError: still\n")
    assert failures.explained("data", SLURM.format("FAILED"), [own, slurm])[2] == "  first error: ValueError: still"


def test_a_disk_that_takes_no_log_is_named_where_no_log_says_anything(tmp_path: Path) -> None:
    """Only here is nothing left to read: a full disk, or as here a quota of no bytes, keeps no word of itself."""
    logs = [tmp_path / "step.log", tmp_path / "slurm.log"]
    for log in logs:
        log.touch()
    allowed = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, allowed[1]))
    try:
        lines = failures.explained("data", SLURM.format("FAILED"), logs)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, allowed)
    assert lines[1:3] == [
        "  what happened: Slurm says FAILED; no log says anything",
        f"  first error: {tmp_path}, where its log lies, cannot be written: [Errno 27] File too large",
    ]
    assert failures.explained("data", SLURM.format("FAILED"), logs)[2] == f"  first error: {SLURM.format('FAILED')}"
    assert set(tmp_path.iterdir()) == set(logs), "nothing is left of the try"


def test_a_submission_that_fails_is_said_in_sbatchs_words(tmp_path: Path) -> None:
    """The log there is is of an earlier attempt, or none."""
    said = "SLURM sbatch failed. The error message was 'sbatch: error: Invalid account'.\n    sbatch call:\n  sbatch"
    lines = failures.explained("report", said, [tmp_path / "own.log"])
    assert "Invalid account" in lines[2] and "site.yaml" in lines[4] and len(lines) == 5


def test_snakemakes_own_lines_are_these_and_its_log_keeps_the_rest(tmp_path: Path) -> None:
    from snakemake.logging import DefaultFormatter

    handlers = [logging.StreamHandler(), logging.FileHandler(tmp_path / "snakemake.log")]
    for handler in handlers:
        handler.setFormatter(DefaultFormatter())
    failures.shorten(handlers)
    facts = {
        "rule_name": "train_model",
        "rule_msg": None,
        "aux": {"external_jobid": 9},
        "log": [],
        "input": ["in"] * 99,
    }
    facts |= {"output": ["r/models/target/spec.yaml"], "jobid": 3, "conda_env": None, "shellcmd": "exec {...}"}
    record = logging.makeLogRecord(
        {"event": "job_error", "levelno": logging.ERROR, "msg": "x", "indent": False, **facts}
    )
    shown, kept = (handler.format(record) for handler in handlers)
    assert len(shown.splitlines()) == 6 and "failed: train_model, r/models/target (Slurm job 9)" in shown
    assert "exec {...}" in kept
    try:
        os.remove(tmp_path / "none" / "file")
    except OSError as error:
        text = "\n".join(traceback.format_exception(error))  # as Snakemake prints what it did not expect
    refused = logging.makeLogRecord({"levelno": logging.ERROR, "msg": text})
    shown, kept = (handler.format(refused) for handler in handlers)
    assert shown.startswith("Snakemake stopped: FileNotFoundError: [Errno 2] ") and "\n" not in shown
    assert "Traceback" in kept and failures.of_system(record) is None
    again = logging.makeLogRecord({"levelno": logging.ERROR, "msg": "RuleException:\nCalledProcessError in file x"})
    assert not handlers[0].filter(again) and handlers[1].filter(again)
    end = logging.makeLogRecord({"levelno": logging.ERROR, "msg": "cannot schedule new futures after shutdown"})
    assert not handlers[0].filter(end)
