"""Logs of attempts: numbered, kept, and the newest one under the step's own name."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from pipeline.launch import attempts


def test_each_start_has_a_log_that_stays(tmp_path: Path) -> None:
    log = tmp_path / "unlearned" / "npo" / "seed-0.log"
    for number in (1, 2, 3):
        attempt = attempts.begin(log)
        assert attempt.number == number
        assert attempt.file == log.parent / "attempts" / f"seed-0.{number}.log"
        assert not log.is_symlink() and log.samefile(attempt.file)
        attempt.file.write_text(f"words of {number}")
        assert log.read_text() == f"words of {number}"
        if number == 2:
            log.unlink()  # as Snakemake does before it starts a job again
    texts = [(log.parent / "attempts" / f"seed-0.{number}.log").read_text() for number in (1, 2, 3)]
    assert texts == ["words of 1", "words of 2", "words of 3"]
    assert sorted(path.name for path in log.parent.iterdir()) == ["attempts", "seed-0.log"]


def test_other_logs_of_the_folder_are_not_counted(tmp_path: Path) -> None:
    for name in ("seed-0.log", "seed-0.extra.log", "seed-00.log"):
        assert attempts.begin(tmp_path / name).number == 1
    (tmp_path / "attempts" / "seed-0.7.log").touch()
    (tmp_path / "attempts" / "seed-0x9.log").touch()
    assert attempts.begin(tmp_path / "seed-0.log").number == 8
    assert attempts.begin(tmp_path / "seed-00.log").number == 2


def test_earlier_attempts_are_named(tmp_path: Path) -> None:
    assert attempts.begin(tmp_path / "data.log").earlier == ""
    assert str(tmp_path / "attempts" / "data.*.log") in attempts.begin(tmp_path / "data.log").earlier


def test_without_hard_links_the_log_is_a_symbolic_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    log = tmp_path / "run" / "data.log"
    for number in (1, 2):
        attempt = attempts.begin(log)
        attempt.file.write_text(f"words of {number}")
        assert log.is_symlink() and log.read_text() == f"words of {number}"
    moved = log.parent.rename(tmp_path / "elsewhere")
    assert (moved / "data.log").read_text() == "words of 2"
