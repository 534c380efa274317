"""Campaigns of faults, seeded and repeatable: ``python -m tests.campaign NAME [--count N] [--seed N]``."""

from __future__ import annotations

import argparse
import sys

from tests.campaign import disk, inputs, kills, load, network, runs

# What is run, and how many rounds where --count says nothing; ``None``: every case.
CAMPAIGNS = {
    "inputs": (inputs.run, None),
    "kills": (kills.run, 20),
    "disk": (disk.run, 60),
    "network": (network.run, None),
    "load": (load.run, 300),
    "runs": (runs.run, 2000),
}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.campaign", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("campaign", choices=CAMPAIGNS)
    parser.add_argument(
        "--count", type=int, help="how many; default: all cases, 20 kills, 60 faults of the disk, 300 jobs, 2000 runs"
    )
    parser.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    given = parser.parse_args()
    if given.count is not None and given.count < 1:
        parser.error(f"--count {given.count}: nothing would be tried; allowed: 1 or more")
    run, count = CAMPAIGNS[given.campaign]
    return 1 if run(count if given.count is None else given.count, given.seed) else 0


if __name__ == "__main__":
    sys.exit(main())
