"""A results folder of thousands of finished runs: what a command takes that has nothing to do, the report, its page.

The contents are made up, and as many as the experiment's plan says: twenty learning rates of NPO on ``mini``, each with
as many seeds as give ``count`` runs. The report is written from them by its own step, and its page is opened in a
headless Chromium, where there is one, beside an empty page.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from pipeline.config.load import load
from pipeline.workflow.jobs import canonical
from pipeline.workflow.plan import Plan
from pipeline.workflow.unchanged import STAMP
from tests.pipeline.report.conftest import GOOD, TIMES, Bench, row
from tests.pipeline.report.test_browser import NAMES

ROOT = Path(__file__).resolve().parents[2]
NAME = "runs"
RATES = 20
PLANNED, OPENED = 5.0, 2.0  # seconds wanted
OPENINGS = 5
ROWS = 40  # of each set that is forgotten or kept
SUMMARY = json.dumps({**TIMES, "flags": []})  # what every .json says but those that the report shows more of
STAGES = ("data", "models", "reference", "unlearned", "evaluation", "report")  # each was there before the next
EMPTY = "<!doctype html><title>nothing</title>"


def experiment(count: int) -> dict[str, Any]:
    """``mini`` with ``count`` runs of NPO, or a few more."""
    values = yaml.safe_load((ROOT / "workflow_configs/experiments/mini.yaml").read_text())
    rates = [round(1e-5 * (number + 1), 10) for number in range(RATES)]
    return {
        **values,
        **{"name": NAME, "methods": ["npo"], "seeds": list(range(-(-count // RATES)))},
        "sweep": {"npo": {"training.optimizer.learning_rate": rates}},
    }


class World:
    """An experiment in a folder, and the commands on it."""

    def __init__(self, folder: Path, count: int) -> None:
        self.folder = folder
        self.file = folder / f"{NAME}.yaml"
        self.file.write_text(yaml.safe_dump(experiment(count), sort_keys=False))
        self.plan = Plan(load(str(self.file)), folder / "results")

    def command(self, *words: str) -> list[str]:
        config = [f"experiment={self.file}", f"results={self.folder / 'results'}"]
        profile = str(ROOT / "workflow_configs/profiles/local")
        program = [sys.executable, "-m", "snakemake", "--snakefile", str(ROOT / "Snakefile"), "--profile", profile]
        return [*program, *words, "--config", *config]

    def fill(self) -> int:
        """Make up every file that a job writes; how many there are."""
        lines = subprocess.run(
            self.command("--summary", "all"), cwd=self.folder, check=True, capture_output=True, text=True
        )
        outputs = [Path(line.partition("\t")[0]) for line in lines.stdout.splitlines()[1:]]
        for path in outputs:
            if path.suffix:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(SUMMARY if path.suffix == ".json" else "")
            else:
                path.mkdir(parents=True, exist_ok=True)
                (path / STAMP).touch()
        bench = Bench(self.folder)
        said = [row(name, number, "In Turin.") for name in ("forget", "retain") for number in range(ROWS)]
        for entry in self.plan.jobs["report"].spec.model_dump(mode="json")["entries"]:
            bench.evaluated(entry, GOOD, examples=said)
            if entry["kind"] == "unlearned":
                bench.unlearned(entry, trajectory=bench.trajectory())
        begun = time.time() - 100 * len(STAGES)
        for path in outputs:
            stage = STAGES.index(path.relative_to(self.plan.paths.root).parts[0])
            os.utime(path / STAMP if path.is_dir() else path, (begun + 100 * stage, begun + 100 * stage))
        return len(outputs)

    def run(self) -> list[str]:
        """The command that users give."""
        return [sys.executable, "-m", "pipeline", "run", str(self.file), "--results", str(self.folder / "results")]


def timed(command: Sequence[str], folder: Path, told: str = "") -> tuple[float, float]:
    """Seconds of the clock and of a processor that a command takes, which must end well."""
    before, begun = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    done = subprocess.run(command, cwd=folder, input=told, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)[:200]}: exit status {done.returncode}:\n{done.stdout[-3000:]}")
    wall, after = time.monotonic() - begun, resource.getrusage(resource.RUSAGE_CHILDREN)
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def opened(browser: str, page: Path, folder: Path) -> tuple[float, float]:
    """As ``timed``, of a browser that opens a page, paints it and ends; the medians of several times."""
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--window-size=1200,900"]
    options.append(f"--user-data-dir={folder}/profile")
    times = [
        timed([browser, *options, f"--screenshot={folder}/page.png", page.as_uri()], folder) for _ in range(OPENINGS)
    ]
    return statistics.median(one[0] for one in times), statistics.median(one[1] for one in times)


def run(count: int, seed: int) -> int:
    """Make ``count`` runs up and time what is done with them; ``seed`` decides nothing.

    Returns:
        How many of the times are longer than wanted.
    """
    del seed
    with tempfile.TemporaryDirectory(prefix="campaign-") as name:
        world = World(Path(name), count)
        report, folder = world.plan.jobs["report"], world.folder
        files, models = world.fill(), len(report.spec.entries)
        print(f"runs: {models} models, {len(world.plan.jobs)} jobs, {files} files", flush=True)
        shutil.rmtree(report.spec.output)
        step = [sys.executable, "-m", "pipeline.launch", str(report.spec.output / "spec.yaml"), "-"]
        _show("the report", timed(step, folder, canonical(report.spec)))
        _show("asked first", timed(world.run(), folder))
        again = timed(world.run(), folder)
        _show("asked again", again)
        late = again[1] > PLANNED
        browser = next(filter(None, map(shutil.which, NAMES)), None)
        if browser is None:
            print("runs: no Chromium: the page was not opened")
            return int(late)
        page, empty = report.spec.output / "index.html", folder / "empty.html"
        empty.write_text(EMPTY)
        nothing, whole = opened(browser, empty, folder), opened(browser, page, folder)
        _show("an empty page", nothing)
        _show(f"the page, {page.stat().st_size / 1e6:.1f} MB", whole)
        return int(late) + int(whole[0] - nothing[0] > OPENED)


def _show(what: str, taken: Sequence[Any]) -> None:
    print(f"{what:<18} {taken[0]:6.1f} s, {taken[1]:6.1f} s of processor time", flush=True)
