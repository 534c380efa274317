"""``python -m pipeline exchange``: evaluations to and from open-unlearning's logs."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from pipeline.benchmarks import family
from pipeline.commands.results import table
from pipeline.data.errors import DataError, printable
from pipeline.exchange.reading import ENDS, family_of_log, read_log
from pipeline.exchange.writing import write_logs

USAGE = """
unlearn exchange results/mini/evaluation/npo-seed-0/mini --out logs     writes TOFU_EVAL.json and its summary
unlearn exchange saves/eval/NAME_retain90/TOFU_EVAL.json --model retrain --split forget10 --out DIR
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments to its parser."""
    add = parser.add_argument
    add("given", type=Path, metavar="FOLDER|FILE", help=f"an evaluation's folder, or {', '.join(ENDS)}")
    add("--out", type=Path, required=True, metavar="DIR", help="folder for what is written")
    add("--model", default="open-unlearning", help="of a log: whose it is, retrain or another name")
    add("--benchmark", help="of a log: the benchmark file's name (default: that of its family)")
    add("--split", help="of a log: the forget split, which it does not say")


def main(given: argparse.Namespace) -> int:
    """Write the one as the other. The exit status: 0, 1 for files that will not do, 2 for wrong arguments."""
    path: Path = given.given.expanduser()
    try:
        if path.is_dir():
            for file in write_logs(path, given.out):
                print(file)
            return 0
        name = family_of_log(path)
        if given.split is None:
            print(f"exchange: --split: is missing; {path.name} does not say its forget split", file=sys.stderr)
            return 2
        record = read_log(path, given.out, model=given.model, benchmark=given.benchmark or name, split=given.split)
    except (DataError, OSError) as error:
        print(f"exchange: error: {error}", file=sys.stderr)
        return 1
    options = family(name).options.model_validate(record.settings.options)
    values = {key: value for key, value in record.metrics.items() if value is not None}
    known = [metric for metric in family(name).metrics(options) if metric.key in values]
    print(printable("\n".join(table(known, values))))
    return 0
