"""``python -m pipeline COMMAND``: what is done by hand, without a workflow.

``validate`` says what an experiment will run, or everything that is wrong with it. ``evaluate`` evaluates any Hugging
Face model. ``metrics`` computes an evaluation's metrics again.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from pipeline.commands import evaluate, metrics, validate

COMMANDS = {
    "validate": (validate, "check an experiment and print its jobs; exits 2 if it is wrong"),
    "evaluate": (evaluate, "evaluate a Hugging Face model on a benchmark"),
    "metrics": (metrics, "compute metrics again from an examples.jsonl"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command that is asked for; returns its exit status."""
    parser = argparse.ArgumentParser(prog="python -m pipeline", description=(__doc__ or "").partition("\n\n")[2])
    parsers = parser.add_subparsers(dest="command", required=True)
    for name, (module, text) in COMMANDS.items():
        module.add_arguments(parsers.add_parser(name, help=text))
    given = parser.parse_args(argv)
    return COMMANDS[given.command][0].main(given)


if __name__ == "__main__":
    sys.exit(main())
