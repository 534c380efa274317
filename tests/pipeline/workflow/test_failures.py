"""A failed job in five lines."""

from __future__ import annotations

import logging
import os
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
