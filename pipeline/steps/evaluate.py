"""Score and question one model on one benchmark: ``python -m pipeline.steps.evaluate SPEC.yaml``, on every rank.

The specification is a ``pipeline.specs.EvaluateSpec``. Rank 0 writes into its ``output``: ``examples.jsonl``, the raw
results of every example; ``summary.json``, times and flags; and last ``evaluation.json``, whose metrics
``python -m pipeline metrics examples.jsonl`` computes again without the model.
"""

from __future__ import annotations

import argparse
import errno
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from megatron_ext.atomic_files import write_json, write_text
from megatron_ext.model.families import family_of
from megatron_ext.specs import read
from megatron_ext.summary import Clock
from pipeline.benchmarks import family
from pipeline.benchmarks.base import SCHEMA, Example, read_rows
from pipeline.benchmarks.megatron_lm import OpenEngine, megatron_engine
from pipeline.data.cache import MANIFEST, sha256
from pipeline.data.errors import DataError
from pipeline.data.tokenizer import Tokenizer
from pipeline.specs import RETRAIN, EvaluateSpec

NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
ANSWERS = "answers"  # folder below the output with what a run that was killed had been answered


def evaluate(
    spec: EvaluateSpec, clock: Clock | None = None, open_engine: OpenEngine = megatron_engine
) -> dict[str, Any] | None:
    """Evaluate, write the files on rank 0 and return what ``evaluation.json`` holds; other ranks return ``None``.

    Raises ``DataError`` that names the file, or the set and example, of data, a score or a retain evaluation that will
    not do; what can be checked before the model is loaded is checked before.
    """
    clock = clock or Clock()
    options, benchmark = spec.options, family(spec.options.family)
    given = checked(spec)
    hashes, tokenizer, retain = given.hashes, given.tokenizer, given.retain
    ask = benchmark.questions(spec.data, options, tokenizer, given.vocabulary)

    evaluation = None
    with open_engine(spec.checkpoint, spec.runtime, tokenizer, spec.token_budget, spec.output / ANSWERS) as engine:
        clock.mark("startup")
        examples = ask(engine)
        clock.mark("work", "answers")
        if engine.rank == 0:
            # Retrain is what the others are compared with; its own comparison is with itself.
            reference = examples if retain is None and spec.model_id == RETRAIN else retain
            metrics = benchmark.compute_metrics(examples, options, reference)
            reasons = benchmark.collapse(examples, options, metrics)
            clock.mark("work", "metrics")
            evaluation = _write(spec, examples, metrics, hashes)
            clock.mark("write")
            counted = {key: metrics[key] for key in ("empty_generations", "repetitive_generations") if key in metrics}
            flags = ["collapsed"] if reasons else []
            clock.write(spec.output, flags, collapsed_because=reasons, **counted, **asdict(engine.amounts))
            # Last: a folder that has one is complete.
            write_json(spec.output / "evaluation.json", evaluation)
            for reason in reasons:
                print(f"evaluate: warning: {spec.model_id} has collapsed: {reason}", file=sys.stderr)
        engine.done()
    return evaluation


@dataclass(frozen=True)
class Checked:
    """What an evaluation reads beside the questions. ``hashes``: SHA-256 of each evaluated set's file; ``retain``: the
    examples of retrain's evaluation; ``vocabulary``: how many ids the model has."""

    hashes: dict[str, str]
    tokenizer: Tokenizer
    retain: list[Example] | None
    vocabulary: int


def checked(spec: EvaluateSpec) -> Checked:
    """Everything that is given with an evaluation. Raises ``DataError`` for what does not go together: data, model,
    tokenizer and retrain's evaluation."""
    hashes = _data_hashes(spec, family(spec.options.family).sets(spec.options))
    tokenizer = Tokenizer.load(spec.data / "tokenizer")
    retain = None if spec.retain_evaluation is None else read_retain_evaluation(spec.retain_evaluation, spec, hashes)
    if retain is None and spec.model_id != RETRAIN and spec.options.needs_retrain:
        raise DataError(f"retain_evaluation: is missing: {spec.options.needs_retrain}")
    return Checked(hashes, tokenizer, retain, _check_model(spec, tokenizer))


def _write(
    spec: EvaluateSpec, examples: Sequence[Example], metrics: dict[str, float], hashes: dict[str, str]
) -> dict[str, Any]:
    """Write ``examples.jsonl``; returns what ``evaluation.json`` is to hold."""
    lines = (json.dumps(example, ensure_ascii=False, allow_nan=False) + "\n" for example in examples)
    write_text(spec.output / "examples.jsonl", "".join(lines))
    sets = dict.fromkeys(example["set"] for example in examples)
    return {
        "schema": SCHEMA,
        "model": spec.model_id,
        "benchmark": spec.benchmark,
        "split": spec.split,
        "seed": spec.seed,
        "metrics": metrics,
        "settings": {
            "options": spec.options.model_dump(mode="json"),
            "decoding": "greedy",
            "precision": spec.runtime.precision,
            "examples": {name: sum(example["set"] == name for example in examples) for name in sets},
            "data_sha256": hashes,
        },
        "provenance": {
            "checkpoint": str(spec.checkpoint),
            "data": str(spec.data),
            "retain_evaluation": None if spec.retain_evaluation is None else str(spec.retain_evaluation),
            "examples_sha256": sha256(spec.output / "examples.jsonl"),
        },
    }


def read_retain_evaluation(folder: Path, spec: EvaluateSpec, hashes: dict[str, str]) -> list[Example]:
    """The examples of retrain's evaluation; raises ``DataError`` where it is not of the same benchmark and data.

    ``hashes``: SHA-256 of each evaluated set's file, which must be those that retrain was evaluated on.
    """
    path = folder / "evaluation.json"
    found = _read_json(path)
    wanted = {
        "schema": SCHEMA,
        "benchmark": spec.benchmark,
        "split": spec.split,
        "settings.options.family": spec.options.family,
        **{f"settings.data_sha256.{name}": digest for name, digest in hashes.items()},
    }
    _agree(path, found, wanted, "a model is compared with retrain on the same benchmark, split and data")
    examples = folder / "examples.jsonl"
    if sha256(examples) != found["provenance"]["examples_sha256"]:
        raise DataError(f"{examples}: not the examples that {path} was computed from")
    return read_rows(examples)


def _data_hashes(spec: EvaluateSpec, sets: Sequence[str]) -> dict[str, str]:
    """SHA-256 of each evaluated set's file; raises ``DataError`` where the manifest says something else."""
    path = spec.data / MANIFEST
    hashes = {name: sha256(spec.data / "evaluation" / f"{name}.jsonl") for name in sets}
    wanted = {f"evaluation.{name}.sha256": digest for name, digest in hashes.items()}
    wanted = {"family": spec.options.family, "forget_split": spec.split, **wanted}
    _agree(path, _read_json(path), wanted, "the folder holds other data, or files of it were changed")
    return hashes


def _check_model(spec: EvaluateSpec, tokenizer: Tokenizer) -> int:
    """How many ids the model has; raises ``DataError`` where it cannot be run, or where the data's ids are not its own.

    The checkpoint's ``tokenizer.json``, where it has one, must be the data's but for limits on length.
    """
    path, data = spec.checkpoint / "config.json", spec.data / "tokenizer"
    config = _read_json(path)
    size = config.get("vocab_size")
    if not isinstance(size, int) or size < tokenizer.vocab_size:
        raise DataError(f"{path}: vocab_size is {size!r}, but the tokenizer of {data} has {tokenizer.vocab_size} ids")
    if (spec.checkpoint / "tokenizer.json").is_file():
        own = Tokenizer.load(spec.checkpoint)
        if own.eos_id != tokenizer.eos_id or own.backend.to_str() != tokenizer.backend.to_str():
            raise DataError(f"{spec.checkpoint}: its tokenizer is not that of {data}, which the data were made with")
    try:
        family_of(config).context(config)
    except ValueError as error:
        raise DataError(f"{path}: {error}") from error
    return size


def _agree(path: Path, found: dict[str, Any], wanted: dict[str, Any], why: str) -> None:
    """Raise ``DataError`` where a value at a dotted key of ``found``, what ``path`` holds, is not the wanted one."""
    for key, value in wanted.items():
        given: Any = found
        for part in key.split("."):
            given = given.get(part) if isinstance(given, dict) else None
        if given != value:
            raise DataError(f"{path}: {key} is {given!r}, but this evaluation's is {value!r}: {why}")


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read: {error}") from error


def main(argv: Sequence[str] | None = None) -> None:
    clock = Clock()
    parser = argparse.ArgumentParser(prog="python -m pipeline.steps.evaluate", description=__doc__.splitlines()[0])
    parser.add_argument("spec", type=Path, help="YAML file with an evaluate specification")
    spec = read(parser.parse_args(argv).spec, EvaluateSpec)
    try:
        evaluation = evaluate(spec, clock)
    except DataError as error:
        raise SystemExit(f"evaluate: error: {error}") from error
    except OSError as error:
        if error.errno not in NO_SPACE:
            raise
        where = error.filename or spec.output
        raise SystemExit(
            f"evaluate: error: {where}: {error.strerror}. What was answered is kept in {spec.output / ANSWERS}: "
            "the next run goes on from there"
        ) from error
    if evaluation is not None:
        headline = [metric for metric in family(spec.options.family).metrics(spec.options) if metric.headline]
        values = (f"{m.title} {evaluation['metrics'][m.key]:.3g}" for m in headline if m.key in evaluation["metrics"])
        print(f"evaluate: {spec.model_id}: {', '.join(values)}", file=sys.stderr)


if __name__ == "__main__":
    main()
