"""Run the papers' experiments at mini scale: ``python -m tests.support.reproduce_mini``, or ``make reproduce-mini``.

``--share HASH`` runs the one that a commit's hash picks, among those of at most ``MOST`` models. Results are
in ``results/<name>-mini``. An experiment that fails does not keep the others from running.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from functools import cache
from pathlib import Path

from pipeline.config.load import load
from pipeline.workflow.plan import Plan
from tests.support.reproduction_page import PAPERS, experiments

MOST = 10  # models to evaluate, target and retrain among them: on two cores less than four minutes with all training


def share(commit: str) -> str:
    """The experiment that a commit's hash picks."""
    small = _small()
    return small[int(commit, 16) % len(small)]


@cache
def _small() -> list[str]:
    """The experiments of few models, each point of a sweep and each evaluated epoch counted."""
    every = [name for paper in PAPERS for name in experiments(paper)]
    return [name for name in every if len(Plan(load(name), Path("results")).evaluated) <= MOST]


def main(arguments: list[str]) -> int:
    """Run them; the exit status is 1 where one failed."""
    parser = argparse.ArgumentParser(prog="python -m tests.support.reproduce_mini")
    parser.add_argument("--share", metavar="HASH", help="a commit's hash: the one experiment that it picks")
    given = parser.parse_args(arguments)
    names = [name for paper in PAPERS for name in experiments(paper)] if given.share is None else [share(given.share)]
    failed = []
    for number, name in enumerate(names, 1):
        start = time.monotonic()
        print(f"== {number}/{len(names)} {name}", flush=True)
        done = subprocess.run([sys.executable, "-m", "pipeline", "run", name, "--set", "scale=mini"], check=False)
        print(f"== {name}: exit status {done.returncode} after {time.monotonic() - start:.0f} s", flush=True)
        failed += [name] if done.returncode else []
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
