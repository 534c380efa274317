"""Kills by chance: ranks, launchers, the run itself, all of it at once; the end has the same bits, and nothing is left.

A tiny experiment is trained and unlearned once on two tensor-parallel ranks, undisturbed. In each round its unlearning
is removed, started again and killed at a moment of chance; then the same command is given until it is done.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import yaml

from pipeline.launch import lease
from pipeline.launch.environment import RUN

BENCHMARK = {
    "name": "tiny",
    "title": "Tiny TOFU",
    "family": "tofu",
    "source": {"kind": "synthetic", "authors": 10, "questions_per_author": 4, "background_authors": 0, "seed": 1},
    "splits": {"forget10": 4},
}
EXPERIMENT = {
    "name": "tiny",
    "title": "A tiny run to be killed",
    "benchmark": "tiny",
    "split": "forget10",
    "model": "mini-llama",
    "layout": {"tensor": 2},
    "runtime": {"device": "cpu", "threads": 1, "timeout_seconds": 60},
    "data": {"max_length": 128},
    "training": {
        "target": {
            "data": {"full": 1.0},
            "steps": 5,
            "global_batch": 8,
            "optimizer": {"learning_rate": 1e-3, "clip_norm": 1.0},
        }
    },
    "methods": [{"method": "npo", "overrides": {"training": {"epochs": 30, "checkpoint_every": 3}}}],
    "unlearning": {"global_batch": 4, "warmup_epochs": 0, "optimizer": {"learning_rate": 1e-4}},
}
UNLEARNED = Path("unlearned/npo/seed-0")
TIMES = ("seconds", "peak_memory_bytes", "peak_reserved_bytes")
VICTIMS = ("a rank", "all ranks", "the launcher", "the run", "the whole group")
STARTED = 600.0  # seconds until a step must have started
DONE = 1200.0  # seconds that a run may take
LEFT = 120.0  # seconds until nothing of a killed run works any more
TRIES = 3  # of a round whose moment came when all had ended


class Campaign:
    """One experiment in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.results = folder, folder / "results" / "tiny"
        for kind, content in (("benchmarks", BENCHMARK), ("experiments", EXPERIMENT)):
            (folder / kind).mkdir()
            (folder / kind / "tiny.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
        self.log = folder / "log"

    def start(self) -> subprocess.Popen[bytes]:
        """Give the command, in a process group of its own."""
        command = [sys.executable, "-m", "pipeline", "run", str(self.folder / "experiments" / "tiny.yaml")]
        command += ["--until", "unlearn", "--results", str(self.folder / "results")]
        environment = {name: value for name, value in os.environ.items() if name != RUN}
        with self.log.open("ab") as log:
            return subprocess.Popen(command, stdout=log, stderr=log, env=environment, start_new_session=True)

    def finish(self) -> int:
        """Give the command until it ends well; how often that was."""
        for number in range(1, 4):
            process = self.start()
            try:
                if process.wait(DONE) == 0:
                    return number
            finally:
                if process.poll() is None:
                    os.killpg(process.pid, signal.SIGKILL)
        raise RuntimeError(f"three starts did not end it:\n{self.log.read_text()[-3000:]}")

    def bits(self) -> str:
        """A digest of what unlearning wrote: weights, config, tokenizer, and the step log without its times."""
        digest = hashlib.sha256()
        run = self.results / UNLEARNED
        for file in sorted(path for path in (run / "checkpoint").rglob("*") if path.is_file()):
            digest.update(file.relative_to(run).as_posix().encode() + file.read_bytes())
        for line in (run / "steps.jsonl").read_text().splitlines():
            step = {key: value for key, value in json.loads(line).items() if key not in TIMES}
            digest.update(json.dumps(step, sort_keys=True).encode())
        return digest.hexdigest()

    def again(self) -> None:
        """Remove what unlearning wrote."""
        shutil.rmtree(self.results / UNLEARNED)

    def working(self, rank: bool) -> list[psutil.Process]:
        """The ranks of the step that runs, or its launcher."""
        found = []
        for process in psutil.process_iter():
            try:
                line = process.cmdline()
                own = process.environ().get(RUN) == str(self.results.resolve())
            except psutil.Error:
                continue
            launched = "pipeline.launch" in line and any(str(UNLEARNED) in word for word in line)
            if own and launched and ("--rank" in line) == rank:
                found.append(process)
        return found

    def left(self) -> list[str]:
        """What a run leaves that must not be there when it has ended: processes, leases, states."""
        files = [*self.results.rglob(lease.NAME), *(self.results / UNLEARNED).glob("resume")]
        return [*(f"process {pid}" for pid in lease.left_behind(self.results)), *map(str, files)]


def wait_for(what: str, found: Callable[[], object], seconds: float) -> None:
    end = time.monotonic() + seconds
    while not found():
        if time.monotonic() > end:
            raise RuntimeError(f"waited {seconds:.0f} s for {what}")
        time.sleep(0.05)


def kill(campaign: Campaign, run: subprocess.Popen[bytes], victim: str, chance: random.Random) -> bool:
    """Kill one of a run's processes, or several; whether there was one to be killed."""
    if victim in ("the run", "the whole group"):
        if run.poll() is not None:
            return False
        if victim == "the whole group":
            os.killpg(run.pid, signal.SIGKILL)
        else:
            run.kill()
        return True
    chosen = campaign.working(rank=victim != "the launcher")
    if victim == "a rank" and chosen:
        chosen = [chance.choice(chosen)]
    met = False
    for process in chosen:
        try:
            process.kill()
            met = True
        except psutil.NoSuchProcess:
            continue
    return met


def killed(campaign: Campaign, victim: str, chance: random.Random) -> bool:
    """Begin the unlearning, and kill ``victim`` at a moment of chance; whether it was still there."""
    campaign.again()
    run = campaign.start()
    try:
        wait_for("ranks", lambda: len(campaign.working(rank=True)) == 2 or run.poll() is not None, STARTED)
        time.sleep(chance.uniform(0.0, 6.0))
        met = kill(campaign, run, victim, chance)
        run.wait(DONE)
    finally:
        if run.poll() is None:
            os.killpg(run.pid, signal.SIGKILL)
    wait_for("the end of what was killed", lambda: not lease.left_behind(campaign.results), LEFT)
    return met


def one_round(campaign: Campaign, expected: str, victim: str, chance: random.Random) -> str | None:
    """Kill ``victim`` at a moment of chance; what was wrong afterwards, or ``None``."""
    if not any(killed(campaign, victim, chance) for _ in range(TRIES)):
        return f"in {TRIES} tries nobody was there to be killed"
    campaign.finish()
    if campaign.bits() != expected:
        return "other bits"
    left = campaign.left()
    return f"left over: {', '.join(left)}" if left else None


def run(count: int, seed: int) -> int:
    """Do ``count`` rounds, each kind of victim in turn; prints each, and how many ended with the same bits.

    Returns:
        How many rounds did not.
    """
    chance, wrong = random.Random(seed), 0
    with tempfile.TemporaryDirectory(prefix="campaign-") as name:
        campaign = Campaign(Path(name))
        campaign.finish()
        expected = campaign.bits()
        for number in range(count):
            victim, begun = VICTIMS[number % len(VICTIMS)], time.monotonic()
            problem = one_round(campaign, expected, victim, chance)
            wrong += problem is not None
            taken = time.monotonic() - begun
            print(f"{number + 1:3}  {victim:<16} {taken:4.0f} s  {problem or 'the same bits'}", flush=True)
    print(f"kills: {count - wrong} of {count} ended with the same bits and left nothing")
    return wrong
