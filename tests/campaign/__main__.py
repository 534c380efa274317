"""Campaigns of faults, seeded and repeatable: ``python -m tests.campaign inputs|kills [--count N] [--seed N]``."""

from __future__ import annotations

import argparse
import sys

from tests.campaign import inputs, kills


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.campaign", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("campaign", choices=["inputs", "kills"])
    parser.add_argument("--count", type=int, help="how many; default: all of the grammar, or 20 kills")
    parser.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    given = parser.parse_args()
    if given.campaign == "kills":
        return 1 if kills.run(20 if given.count is None else given.count, given.seed) else 0
    return 1 if inputs.run(given.count, given.seed) else 0


if __name__ == "__main__":
    sys.exit(main())
