"""A line for every step that is done, with the time that is left."""

from __future__ import annotations

import io
import logging
import re
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pipeline.config.load import load
from pipeline.workflow import progress
from pipeline.workflow.plan import Plan
from pipeline.workflow.progress import STARTING, Expected, Forecast, Progress, duration


def test_time_left_follows_from_what_jobs_of_the_program_have_taken() -> None:
    """Twice the work takes twice as long; jobs of a program of which none is done are scaled by all with a model."""
    forecast = Forecast(
        {
            "models/base": Expected("fetch", STARTING),
            "models/a": Expected("train", 10),
            "models/b": Expected("train", 20),
            "evaluation/a": Expected("evaluate", 15),
            "evaluation/b": Expected("evaluate", 15),
            "report": Expected("report", STARTING),
        }
    )
    assert forecast.left(6, {}, 0) is None
    forecast.taken["models/base"] = 1  # a second of fetching says nothing of the hours of training
    assert forecast.seconds("models/a") is None and forecast.left(5, {}, 1) is None
    assert forecast.left(4, {"models/a": 3}, 4) is None
    forecast.taken["models/a"] = 30
    assert forecast.seconds("models/b") == 60
    assert forecast.seconds("evaluation/b") == 45 and forecast.seconds("report") == STARTING
    forecast.taken["evaluation/a"] = 5
    assert forecast.seconds("evaluation/b") == 5
    # models/b has run for 20 of 60 s; evaluation/b takes 5 s, the report 5 s; one job at a time.
    assert forecast.left(2, {"models/b": 20}, elapsed=56) == pytest.approx(40 + 5 + STARTING)
    # The same in half the time: two at a time.
    assert forecast.left(2, {"models/b": 20}, elapsed=28) == pytest.approx((40 + 5 + STARTING) / 2)


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0 s"), (59.4, "59 s"), (59.6, "1 min 0 s"), (200, "3 min 20 s"), (7500, "2 h 5 min")]
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def say(shown: Progress, event: str, level: int = logging.INFO, **data: Any) -> None:
    record = logging.makeLogRecord({"event": event, "levelno": level, "msg": data.pop("msg", None), **data})
    progress._notice(shown, record, logging.Formatter())


def begin(shown: Progress, number: int, title: str, folder: Path | None) -> None:
    outputs = [] if folder is None else [str(folder / "spec.yaml"), str(folder / "summary.json")]
    say(shown, "job_info", jobid=number, rule_msg=title, rule_name="some_rule", output=outputs, log=[])


def test_a_line_a_step_with_its_number_and_the_time_left(tmp_path: Path) -> None:
    """Rules that gather others are no steps, and a step that failed is not done."""
    plan, clock, stream = Plan(load("mini"), tmp_path), SimpleNamespace(now=0.0), io.StringIO()
    shown = Progress(plan, stream, clock=lambda: clock.now)
    say(shown, "run_info", stats={"all": 1, "train_model": 2, "report": 1, "total": 4})
    begin(shown, 1, "train: base", plan.paths.root / "models" / "base")
    clock.now = 60.0
    say(shown, "job_finished", job_id=1)
    begin(shown, 2, "train: target", plan.paths.root / "models" / "target")
    say(shown, "job_info", jobid=0, rule_msg=None, rule_name="all", output=[])
    say(shown, "job_finished", job_id=0)
    (tmp_path / "step.log").write_text("".join(f"line {i}\n" for i in range(100)))
    more = {
        "rule_msg": None,
        "output": [],
        "aux": {"external_jobid": 7},
        "log": [str(tmp_path / "step.log"), "no such file"],
    }
    say(shown, "error", logging.ERROR, msg="RuleException:\nCalledProcessError in file x, line 1")
    say(shown, "job_error", logging.ERROR, jobid=2, rule_name="train_model", **more)
    say(shown, "", logging.WARNING, msg="what else there is to know\x1b[2J")
    begin(shown, 3, "train: target", plan.paths.root / "models" / "target")
    clock.now = 100.0
    say(shown, "job_finished", job_id=3)

    first, failed, *lines, other, last = stream.getvalue().splitlines()
    assert re.fullmatch(r"1/2  train: base +1 min 0 s +about \d+ (s|min \d+ s) left", first)
    assert failed == "failed: train: target, after 0 s" and len(lines) == 4
    assert "line 99" in lines[1] and f"{tmp_path}/step.log" in lines[2]
    assert other == "what else there is to know\\x1b[2J"
    assert re.fullmatch(r"2/2  train: target +40 s", last)


def test_a_terminal_shows_how_far_what_runs_has_come(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "SHOWN", 0.01)
    plan, stream = Plan(load("mini"), tmp_path), Terminal()
    folder = plan.paths.root / "models" / "base"
    (folder / "resume").mkdir(parents=True)
    (folder / "resume" / "steps.jsonl").write_text('{"step": 1}\n{"step": 2}\n')
    shown = Progress(plan, stream)
    begin(shown, 1, "train: base", folder)
    for _ in range(500):
        if "step 2 of 400" in stream.getvalue():
            break
        time.sleep(0.01)
    assert "step 2 of 400" in stream.getvalue()
