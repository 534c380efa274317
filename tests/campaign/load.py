"""Hundreds of jobs on a Slurm cluster of two nodes: what Snakemake takes, and that nothing is lost or done twice.

Every method of ``mini-all``, with as many seeds as give ``count`` jobs, each of a few steps on a tiny benchmark, in
containers. When half of the steps are done, Snakemake is killed; the same command must then come to the report. Needs
root on Debian 12: the cluster, a clone and an image are made first, as for ``make test-cluster``.
"""

from __future__ import annotations

import csv
import os
import signal
import time
from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import yaml

from pipeline.config.load import load
from pipeline.launch import lease
from pipeline.workflow.plan import Plan
from tests.campaign import kills
from tests.cluster import ready
from tests.cluster.clone import Clone, slurm_jobs, wait_for

ROOT = Path(__file__).resolve().parents[2]
NAME = "load"
SITE = {"partition": "main", "gpus_per_node": 0, "cpus_per_node": 2, "memory_per_node_mb": 64000}
DONE = "provenance.json"  # the last file that a step writes
SECONDS = 3 * 3600.0  # that a start of Snakemake may take
LEFT = 180.0  # seconds until the jobs of a killed Snakemake have ended


def experiment(count: int) -> dict[str, Any]:
    """``mini-all``, shortened, with the fewest seeds whose unlearning and evaluations are ``count`` jobs."""
    values = yaml.safe_load((ROOT / "workflow_configs/experiments/mini-all.yaml").read_text())
    few = {"epochs": 1, "warmup_epochs": 0, "validation": None}
    return {
        **values,
        **{"name": NAME, "title": "Every method, few steps", "benchmark": "tiny"},
        "training": kills.EXPERIMENT["training"],
        "seeds": list(range(-(-count // (2 * len(values["methods"]))))),
        "unlearning": {**values["unlearning"], **few},
        "evaluation": {"options": {"max_new_tokens": 4}},
    }


@dataclass
class Used:
    """What one Snakemake took: seconds of the clock, of a processor (and of its ended children's), and MiB."""

    wall: float = 0.0
    processor: float = 0.0
    memory: float = 0.0

    def watch(self, process: psutil.Process) -> None:
        with process.oneshot():
            times = process.cpu_times()
            self.wall = time.time() - process.create_time()
            self.processor = times.user + times.system + times.children_user + times.children_system
            self.memory = max(self.memory, process.memory_info().rss / 2**20)

    def __str__(self) -> str:
        return f"{self.wall:5.0f} s, {self.processor:4.0f} s of processor time, at most {self.memory:4.0f} MiB"


def start(clone: Clone, path: Path, stop: Callable[[], bool] = lambda: False) -> tuple[int, str, Used]:
    """Give the command until it ends, or kill it as soon as ``stop()``; its status, what it printed, what it took."""
    used = Used()
    with clone.running("all", experiment=path, timeout=SECONDS) as running:
        process = psutil.Process(running.process.pid)
        while running.poll() is None:
            try:
                used.watch(process)
            except psutil.NoSuchProcess:
                break
            if stop():
                os.killpg(running.process.pid, signal.SIGKILL)
                break
            time.sleep(1)
    return running.outcome.status, running.outcome.printed, used


def done(results: Path, steps: Collection[str]) -> int:
    """How many of the steps are finished."""
    return sum((results / step / DONE).is_file() for step in steps)


def wrong(results: Path, steps: Collection[str], interrupted: int) -> list[str]:
    """What is lost, was done twice or is left over, where ``interrupted`` jobs were alive when Snakemake was killed."""
    found = [f"{step} is not there" for step in steps if not (results / step / DONE).is_file()]
    starts = Counter({step: len(list(attempts(results, step))) for step in steps})
    found += [f"{step} was started {number} times" for step, number in starts.items() if number not in (1, 2)]
    again = [step for step, number in starts.items() if number == 2]
    if len(again) > interrupted:
        found.append(f"{len(again)} steps were started twice, and {interrupted} jobs were alive: {', '.join(again)}")
    hidden = [*results.rglob(lease.NAME), *results.rglob("resume"), *results.glob("report-partial")]
    return [*found, *(f"{path.relative_to(results)} is left" for path in hidden)]


def attempts(results: Path, step: str) -> list[Path]:
    """A log for each start of a step; that of a benchmark's data has no name of its own."""
    log = results / "logs" / ("data" if step.startswith("data/") else step)
    return [path for path in (log.parent / "attempts").glob(f"{log.name}.*.log") if path.is_file()]


def run(count: int, seed: int) -> int:
    """Run ``count`` jobs or a few more, with a kill in their middle; ``seed`` decides nothing.

    Returns:
        How many things were wrong; 0, with a word, on a machine that no cluster can be set up on.
    """
    del seed
    problems = ["did not come to its end"]
    try:
        with ready.folder(lambda: bool(problems)) as folder, ready.cluster(folder / "cluster", "--cpus", "2"):
            clone = ready.clone(folder)
            clone.site(**SITE, image=str(ready.image(clone)))
            problems = _loaded(clone, count)
    except ready.NotHere as error:
        print(f"load: {error}: nothing was tried")
        return 0
    print(*problems, sep="\n")
    return len(problems)


def _loaded(clone: Clone, count: int) -> list[str]:
    own, results = clone.folder.parent / "own", clone.folder / "results" / NAME
    path = own / "experiments" / f"{NAME}.yaml"
    clone.write(own / "benchmarks" / "tiny.yaml", kills.BENCHMARK)
    clone.write(path, experiment(count))
    plan = Plan(load(str(path)), clone.folder / "results")
    steps = list(plan.jobs)
    print(f"load: {len(steps)} jobs", flush=True)
    status, printed, used = start(clone, path, lambda: done(results, steps) >= len(steps) // 2)
    alive, half = len(slurm_jobs("RUNNING", "COMPLETING")), done(results, steps)
    print(f"killed     {used}; {half} steps done, {alive} jobs running", flush=True)
    problems = []
    if half < len(steps) // 2:
        problems.append(f"ended before its kill, at {half} steps, with status {status}: {printed[-2000:]}")
    status, printed, used = start(clone, path)
    print(f"went on    {used}; {done(results, steps)} steps done", flush=True)
    problems += [f"status {status}: {printed[-2000:]}"] if status else []
    wait_for("the last job's end", lambda: not slurm_jobs("RUNNING", "PENDING", "COMPLETING"), LEFT)
    problems += wrong(results, steps, alive)
    table = results / "report" / "table.csv"
    if not table.is_file():
        return [*problems, "there is no report"]
    with table.open() as file:
        rows = len({(row["method"], row["seed"]) for row in csv.DictReader(file)})
    print(f"report     {rows} rows", flush=True)
    status, printed, used = start(clone, path)
    print(f"once more  {used}", flush=True)
    if status or "Job " in printed:
        problems.append(f"a repeated run had something to do: {printed[-2000:]}")
    return problems
