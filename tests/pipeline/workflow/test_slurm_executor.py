"""Snakemake's Slurm plugin where the controller does not answer: what upstream does, and what it is made to do here."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import snakemake_executor_plugin_slurm as plugin

from pipeline.workflow import runs, slurm_executor

REPLACED = ("check_active_jobs", "run_job", "cancel_jobs", "__post_init__")
UPSTREAM = {name: getattr(plugin.Executor, name) for name in REPLACED} | {"age": plugin.get_min_job_age}
JOBS = [SimpleNamespace(external_jobid=str(number), aux={}) for number in (7, 8)]


class Throttle:
    """Allows every question at once."""

    async def __aenter__(self) -> None: ...

    async def __aexit__(self, *_: object) -> None: ...


@pytest.fixture(autouse=True)
def upstream(monkeypatch: pytest.MonkeyPatch) -> None:
    """The plugin as it is installed, also where another test has mended it, and a Slurm that is away."""
    for name in REPLACED:
        monkeypatch.setattr(plugin.Executor, name, getattr(UPSTREAM[name], "__wrapped__", UPSTREAM[name]))
    monkeypatch.setattr(plugin, "get_min_job_age", lambda: None)
    monkeypatch.setattr(plugin, "is_query_tool_available", lambda tool: tool == "squeue")
    monkeypatch.setattr(slurm_executor, "ASKED", 0.0)


def answers(monkeypatch: pytest.MonkeyPatch, *states: dict[str, str] | None) -> None:
    """Let the plugin's questions be answered in turn; ``None``: not at all. The last answer stays."""
    left = list(states)

    async def query(command: str, logger: logging.Logger) -> tuple[dict[str, str] | None, float | None]:
        state = left.pop(0) if len(left) > 1 else left[0]
        return state, None if state is None else 0.01

    monkeypatch.setattr(plugin, "query_job_status", query)


def executor() -> Any:
    settings = SimpleNamespace(status_attempts=2, status_command="squeue", init_seconds_before_status_checks=8)
    waits = SimpleNamespace(seconds_between_status_checks=1)
    made = plugin.Executor.__new__(plugin.Executor)
    made.workflow = SimpleNamespace(executor_settings=settings, remote_execution_settings=waits)
    made.logger = logging.getLogger("slurm")
    made.status_rate_limiter, made.run_uuid = Throttle(), "run"
    made._status_query_calls = made._status_query_failures = 0
    made._status_query_total_seconds = made._status_query_max_seconds = 0.0
    made._status_query_min_seconds, made._status_query_cycle_rows = None, []
    made._next_seconds_between_status_checks = None
    return made


def still_active(looking: Any) -> list[str]:
    async def look(found: AsyncIterator[Any]) -> list[str]:
        return [job.external_jobid async for job in found]

    return asyncio.run(look(looking.check_active_jobs(JOBS)))


def test_upstream_forgets_every_job(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails as soon as upstream keeps them: then ``slurm_executor`` need not."""
    answers(monkeypatch, None)
    assert still_active(executor()) == []


def test_upstream_takes_a_silent_controller_for_a_forgetful_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails as soon as upstream remembers ``MinJobAge``, or tells the two from each other."""
    age = getattr(UPSTREAM["age"], "__wrapped__", UPSTREAM["age"])
    monkeypatch.setattr("subprocess.check_output", lambda *_, **__: "MinJobAge = 600 sec\n")
    assert age() == 600
    monkeypatch.setattr("subprocess.check_output", silent)
    assert age() is None


def silent(*_: object, **__: object) -> str:
    raise plugin.job_status_query.subprocess.CalledProcessError(1, "scontrol")


def test_jobs_are_kept_and_what_is_wrong_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    slurm_executor.mend(tmp_path)
    looking = executor()
    answers(monkeypatch, None, None, None, None, {"7": "RUNNING", "8": "PENDING"})
    assert [still_active(looking) for _ in range(3)] == [["7", "8"]] * 3
    said = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert ["has not answered for" in line for line in said] == [True, True, False]
    assert "answers again, after" in said[2]
    answers(monkeypatch, {"7": "RUNNING", "8": "RUNNING"})
    caplog.clear()
    assert still_active(looking) == ["7", "8"] and not caplog.records


def test_how_long_slurm_keeps_jobs_is_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ages = iter([None, 600, None])
    monkeypatch.setattr(plugin, "get_min_job_age", lambda: next(ages))
    slurm_executor.mend(tmp_path)
    assert [plugin.get_min_job_age() for _ in range(3)] == [None, 600, 600]


@pytest.mark.parametrize("cancelled", [False, True])
def test_a_submission_waits_for_the_controller(
    cancelled: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Two attempts more would have failed within seconds; and Ctrl-C ends the waiting."""
    submitted: list[object] = []
    monkeypatch.setattr(plugin.Executor, "run_job", lambda self, job: submitted.append(job))
    monkeypatch.setattr(plugin.Executor, "cancel_jobs", lambda self, jobs: None)
    slurm_executor.mend(tmp_path)
    statuses = iter([1, 1, 0])
    monkeypatch.setattr(slurm_executor, "_answers", lambda: next(statuses) == 0)
    waiting = executor()
    if cancelled:
        waiting.cancel_jobs([])
    waiting.run_job(SimpleNamespace(name="prepare"))
    assert len(submitted) == (not cancelled)
    said = [record.getMessage() for record in caplog.records]
    assert cancelled or (len(said) == 3 and "answers again" in said[2] and "prepare waits" in said[0])


def test_logs_and_names_of_jobs_are_the_experiments_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Unless options of the plugin say others; the plugin's clean-up would remove another run's new, empty folder."""
    seen: list[tuple[object, object]] = []

    def begin(self: Any) -> None:
        settings = self.workflow.executor_settings
        seen.append((settings.logdir, settings.jobname_prefix))

    monkeypatch.setattr(plugin.Executor, "__post_init__", begin)
    slurm_executor.mend(tmp_path)
    for logdir, prefix in ((None, ""), (Path("/logs"), "mine")):
        made = executor()
        made.workflow.executor_settings.logdir, made.workflow.executor_settings.jobname_prefix = logdir, prefix
        made.__post_init__()
        assert made._fallback_account_arg == ""
    assert seen == [(tmp_path / "logs" / "slurm", runs.job_names(tmp_path)), (Path("/logs"), "mine")]


def test_upstream_cannot_guess_an_account(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """Fails as soon as upstream can: then it may."""
    called: list[list[str]] = []
    monkeypatch.setattr("subprocess.check_output", lambda command, **_: called.append(command) or "x")
    plugin.get_account(logging.getLogger())
    assert "|" in called[0], "no shell reads this"


def test_a_look_before_the_executor_is_whole_ends_nothing(tmp_path: Path) -> None:
    """The thread that asks would end without a word, and no job would ever be seen to end."""
    slurm_executor.mend(tmp_path)
    made = executor()
    del made._status_query_calls

    async def look() -> list[Any]:
        return [job async for job in made.check_active_jobs([])]

    assert asyncio.run(look()) == []
