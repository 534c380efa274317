"""Compute metrics again from an evaluation's raw results: ``python -m pipeline.metrics FILE [--retain FILE]``.

Prints them as JSON. Needs neither the model nor the data; ``FILE`` is an ``examples.jsonl``.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from pipeline.benchmarks import families, family
from pipeline.benchmarks.base import read_rows


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m pipeline.metrics", description=__doc__.splitlines()[0])
    parser.add_argument("examples", type=Path, metavar="FILE", help="examples.jsonl of an evaluation")
    parser.add_argument("--retain", type=Path, metavar="FILE", help="examples.jsonl of retrain, for forget quality")
    parser.add_argument("--family", choices=families(), default="tofu", help="benchmark family (default: %(default)s)")
    given = parser.parse_args(argv)
    retain = None if given.retain is None else read_rows(given.retain)
    print(json.dumps(family(given.family).recompute(read_rows(given.examples), retain), indent=2, allow_nan=False))


if __name__ == "__main__":
    main()
