"""``python -m pipeline metrics``: every metric of an evaluation once more, from its ``examples.jsonl`` alone."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from pipeline.benchmarks import AnyOptions, Options, families, family
from pipeline.benchmarks.base import Example
from pipeline.benchmarks.records import EVALUATION, EvaluationRecord
from pipeline.commands.options import family_options
from pipeline.config.located_yaml import ConfigError, Document, Key, Mark, hint
from pipeline.data.errors import DataError
from pipeline.data.json_files import agree, read_rows
from pipeline.specs import RETRAIN

USAGE = """
unlearn metrics results/mini/evaluation/npo-seed-0/mini/examples.jsonl \\
    --retain results/mini/evaluation/retrain/mini/examples.jsonl
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments to its parser."""
    add = parser.add_argument
    add("examples", type=Path, metavar="FILE", help="examples.jsonl of an evaluation")
    add("--retain", type=Path, metavar="FILE", help="examples.jsonl of retrain, to compare with")
    add("--family", help="the benchmark family; default: that of evaluation.json beside FILE, with its settings")
    add("--option", action="append", default=[], metavar="KEY=VALUE", help="a setting of the family, as YAML")


def main(given: argparse.Namespace) -> int:
    """Print the metrics as JSON. The exit status: 0, 1 for examples that will not do, 2 for wrong arguments."""
    try:
        values = compute_metrics(given)
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 2
    except (DataError, OSError) as error:
        print(f"metrics: error: {error}", file=sys.stderr)
        return 1
    print(json.dumps(values, indent=2, allow_nan=False))
    return 0


def compute_metrics(given: argparse.Namespace) -> dict[str, float]:
    """Metrics of ``given.examples``, compared with those of ``given.retain``; retrain's are compared with themselves.

    Needs neither the model nor the data. Raises ``DataError`` that names file and row.
    """
    evaluation = record_of(given.examples)
    options = _options(given, evaluation)
    examples = _examples(given.examples)
    retain = None
    if given.retain is not None:
        _of_the_same_data(given, evaluation, record_of(given.retain))
        retain = _examples(given.retain)
    elif evaluation is not None and evaluation.model == RETRAIN:
        retain = examples
    try:
        return family(options.family).compute_metrics(examples, options, retain)
    except DataError as error:
        raise DataError(f"{given.examples}: {error}") from None
    except KeyError as error:
        raise DataError(_lacking(given, examples, retain or [], error.args[0])) from None


def _lacking(given: argparse.Namespace, examples: Sequence[Example], retain: Sequence[Example], key: object) -> str:
    """Which example lacks a key: the first of a set in which others have it."""
    for path, rows in ((given.examples, examples), (given.retain, retain)):
        having = {row["set"] for row in rows if key in row}
        for number, row in enumerate(rows, 1):
            if key not in row and row["set"] in having:
                return f"{path}, line {number}: no {key!r}"
    return f"{given.examples}: the examples of a set have no {key!r}"


def record_of(examples: Path) -> EvaluationRecord | None:
    """The record in the folder of ``examples``, or ``None`` where there is none."""
    file = examples.parent / EVALUATION
    return EvaluationRecord.read(file) if file.is_file() else None


def _options(given: argparse.Namespace, evaluation: EvaluationRecord | None) -> Options:
    recorded: dict[str, Any] = {}
    if given.family is None:
        if evaluation is None:
            file = given.examples.parent / EVALUATION
            raise ConfigError([f"--family: is missing, and there is no {file}; allowed: {', '.join(families())}"])
        recorded = evaluation.settings.options
        try:
            options = TypeAdapter(AnyOptions).validate_python(recorded)
        except ValidationError as error:
            raise DataError(f"{given.examples.parent / 'evaluation.json'}: settings.options: {error}") from None
        if not given.option:
            return options
        name = options.family
    elif given.family not in families():
        raise ConfigError([f"--family: unknown family {given.family!r}{hint(given.family, list(families()))}"])
    else:
        name = given.family
    problems: list[str] = []
    file = given.examples.parent / EVALUATION
    own = {key: value for key, value in recorded.items() if key != "family"}
    marks: dict[Key, Mark] = {(): Mark(file, 1, ("settings", "options"))}
    changed = family_options(Document(own, marks), given.option, name, problems)
    if changed is None or problems:
        raise ConfigError(problems)
    return changed


def _examples(path: Path) -> list[Example]:
    """The rows of a file; raises ``DataError`` that names the line of one that is no example."""
    rows: list[Example] = [*read_rows(path)]
    for number, row in enumerate(rows, 1):
        for key, kind in (("set", str), ("index", int)):
            if not isinstance(row.get(key), kind):
                raise DataError(f"{path}, line {number}: {key!r} is {row.get(key)!r}: not an example of an evaluation")
        for key in ("answer", "gt"):
            if not isinstance(row.get(key, ""), str):
                raise DataError(f"{path}, line {number}: {key!r} is {row[key]!r:.60}: not a text")
    return rows


def _of_the_same_data(given: argparse.Namespace, own: EvaluationRecord | None, retain: EvaluationRecord | None) -> None:
    """Raise ``DataError`` with both values where retrain's evaluation, as far as both are known, is of other data."""
    if own is None or retain is None:
        return
    wanted = {"benchmark": own.benchmark, "split": own.split}
    if not retain.is_foreign:
        wanted |= {f"settings.data_sha256.{name}": digest for name, digest in own.settings.data_sha256.items()}
    try:
        agree(given.retain, retain, wanted, f"{given.examples} is of another evaluation")
    except DataError as error:
        raise DataError(f"--retain: {error}") from None
