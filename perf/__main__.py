"""Every benchmark at each of its sizes, one process after the other, and a table: ``python -m perf``.

Prints each result as a JSON line when it is there, then the table; the exit status says whether all of them ran and no
bound was exceeded.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
# Name, size, optimizer steps of each variant.
PLAN = [
    ("blur", "10M", 7),
    ("blur", "100M", 5),
    ("reference", "10M", 5),
    ("reference", "100M", 3),
    ("rmu", "10M", 7),
    ("rmu", "100M", 3),
    ("packed", "10M", 5),
    ("packed", "100M", 3),
    ("transformers_loop", "10M", 5),
    ("transformers_loop", "100M", 3),
    ("packed_loop", "10M", 5),
    ("packed_loop", "100M", 3),
    ("evaluation", "2M", 3),
    ("endless", "2M", 3),
    ("choices", "2M", 3),
    ("generation", "2M", 3),
]


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m perf", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default: %(default)s)")
    parser.add_argument("--size", choices=dict.fromkeys(size for _, size, _ in PLAN), help="only this size")
    given = parser.parse_args(argv)
    results, failed = [], []
    for name, size, steps in PLAN:
        if given.size in (None, size):
            try:
                results += measured(name, "--size", size, "--steps", str(steps), "--threads", str(given.threads))
            except subprocess.CalledProcessError as error:  # its own messages are above; the others are still worth it
                failed.append(f"{name} {size} failed, exit status {error.returncode}")
    print(table(results), *failed, sep="\n")
    return 0 if all(found["met"] for found in results) and not failed else 1


def measured(name: str, *arguments: str) -> list[dict[str, Any]]:
    """The results of one benchmark in a process of its own, which are printed too."""
    program = [sys.executable, "-m", f"perf.{name}", *arguments]
    lines = subprocess.run(program, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()
    print(*lines, sep="\n", flush=True)
    return [json.loads(line) for line in lines]


def table(results: Sequence[dict[str, Any]]) -> str:
    """Markdown."""
    rows = [
        "| Benchmark | Size | Seconds a step, part or token | Ratio (least, most) | Bound | |",
        "| --- | --- | --- | --- | ---: | --- |",
    ]
    for found in results:
        seconds = ", ".join(f"{name} {time:.{2 if time >= 0.1 else 4}f}" for name, time in found["seconds"].items())
        ratio = "{:.3f} ({:.3f}, {:.3f})".format(found["ratio"], *found["spread"])
        notes = ", ".join(["met" if found["met"] else "**exceeded**", *found["notes"]])
        rows.append(
            f"| {found['benchmark']} | {found['size']} | {seconds} | {ratio} | {found['bound']:.2f} | {notes} |"
        )
    return "\n".join(rows)


if __name__ == "__main__":
    sys.exit(main())
