"""What Snakemake's Slurm plugin gets wrong where Slurm's controller is away for a moment, put right on its class.

Of snakemake-executor-plugin-slurm 2.8.0, whose files lie in
https://github.com/snakemake/snakemake-executor-plugin-slurm/blob/v2.8.0/snakemake_executor_plugin_slurm/ and of which
``tests/pipeline/workflow/test_slurm_executor.py`` shows that it still does so. What upstream has mended goes from here.

* Where no attempt of one look at the jobs is answered, ``check_active_jobs`` (``__init__.py``) yields none of them. All
  are forgotten, and Snakemake waits for ever.
* ``get_min_job_age`` (``job_status_query.py``) takes a controller that does not answer for one that forgets jobs at
  once. They are asked for by ``sacct`` then, which many clusters do not have.
* ``run_job`` (``__init__.py``) gives up a job that cannot be submitted at that moment, three times within seconds.
* ``get_account`` (``accounts.py``) gives ``sacct`` a pipe among its options, which always fails, with two warnings.
"""

from __future__ import annotations

import logging
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

from pipeline.workflow.runs import job_names

ASKED = 5.0  # seconds between two questions whether the controller answers again
QUESTION = ("sinfo", "--noheader", "--format=%R")


def mend(results: Path) -> None:
    """Put the plugin right, in this process; a second call changes nothing but the results.

    Jobs have names that tell whose they are, and Slurm's logs a folder of their own: when a run ends, the plugin
    removes every empty folder that it finds beside its logs, in which another run's job is about to write.

    Args:
        results: The experiment's results.
    """
    import snakemake_executor_plugin_slurm as plugin

    executor = plugin.Executor
    if not hasattr(executor.check_active_jobs, "__wrapped__"):
        plugin.get_min_job_age = _remembered(plugin.get_min_job_age)
        executor.check_active_jobs = _going_on(executor.check_active_jobs)
        executor.run_job = _patient(executor.run_job)
        executor.cancel_jobs = _noting(executor.cancel_jobs)
        executor.__post_init__ = _apart(executor.__post_init__)
    executor.results = results


def _going_on(looks: Callable[..., AsyncIterator[Any]]) -> Callable[..., AsyncIterator[Any]]:
    """``check_active_jobs``, which keeps the jobs where Slurm does not answer, and says for how long."""

    async def check_active_jobs(self: Any, active_jobs: list[Any]) -> AsyncIterator[Any]:
        # The thread that asks starts before the executor is whole: then there are no jobs, and nothing to look at.
        answered, since = getattr(self, "_status_query_calls", 0), getattr(self, "unanswered_since", None)
        begun = time.monotonic()
        async for job in looks(self, active_jobs):
            yield job
        if not active_jobs:
            return
        if self._status_query_calls > answered:
            if since is not None:
                _say(self, f"Slurm answers again, after {time.monotonic() - since:.0f} s")
            self.unanswered_since = None
            return
        self.unanswered_since = begun if since is None else since
        gone = time.monotonic() - self.unanswered_since
        _say(self, f"Slurm's controller has not answered for {gone:.0f} s; {len(active_jobs)} jobs: asking again")
        for job in active_jobs:
            yield job

    check_active_jobs.__wrapped__ = looks  # type: ignore[attr-defined] # as functools.wraps does, for generators too
    return check_active_jobs


def _remembered(ask: Callable[[], int | None]) -> Callable[[], int | None]:
    """``get_min_job_age``, which says what the controller last answered where it does not answer."""
    last: list[int] = []

    def get_min_job_age() -> int | None:
        age = ask()
        if age is not None:
            last[:] = [age]
        return age if age is not None or not last else last[0]

    get_min_job_age.__wrapped__ = ask  # type: ignore[attr-defined] # as functools.wraps does
    return get_min_job_age


def _patient(submit: Callable[..., None]) -> Callable[..., None]:
    """``run_job``, which waits until the controller answers; it runs in a thread of its own."""

    def run_job(self: Any, job: Any) -> None:
        begun, said = time.monotonic(), False
        while not _answers():
            if getattr(self, "is_cancelled", False):
                return
            gone = time.monotonic() - begun
            _say(self, f"Slurm's controller has not answered for {gone:.0f} s; rule {job.name} waits to be submitted")
            said = True
            time.sleep(ASKED)
        if said:
            _say(self, f"Slurm answers again, after {time.monotonic() - begun:.0f} s; rule {job.name} is submitted")
        submit(self, job)

    run_job.__wrapped__ = submit  # type: ignore[attr-defined] # as functools.wraps does
    return run_job


def _noting(cancel: Callable[..., None]) -> Callable[..., None]:
    """``cancel_jobs``, after which nothing waits to be submitted."""

    def cancel_jobs(self: Any, active_jobs: list[Any]) -> None:
        self.is_cancelled = True
        cancel(self, active_jobs)

    return cancel_jobs


def _apart(begin: Callable[..., None]) -> Callable[..., None]:
    """``__post_init__``, with names of jobs and a folder of logs of these results, and no guess of an account."""

    def __post_init__(self: Any, *given: Any, **named: Any) -> None:
        settings = self.workflow.executor_settings
        settings.logdir = settings.logdir or (self.results / "logs" / "slurm").absolute()
        settings.jobname_prefix = settings.jobname_prefix or job_names(self.results)
        begin(self, *given, **named)
        self._fallback_account_arg = ""  # no account is asked for but the site's
        sys.modules[type(self).__module__].get_min_job_age()  # to be remembered

    return __post_init__


def _answers() -> bool:
    """Whether the controller answers, or Slurm's commands are not there at all, which sbatch then says."""
    try:
        return subprocess.run(QUESTION, capture_output=True, timeout=60).returncode == 0
    except subprocess.TimeoutExpired:
        return False
    except OSError:
        return True


def _say(executor: Any, text: str) -> None:
    logger: logging.Logger = executor.logger
    logger.warning(text)
