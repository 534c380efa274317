"""Evaluate one model on one benchmark: ``python -m pipeline.steps.evaluate SPEC.yaml``, on every rank.

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

from megatron_ext.atomic_files import write_text
from megatron_ext.model.families import family_of
from megatron_ext.specs import read
from megatron_ext.summary import Clock
from pipeline.benchmarks import family
from pipeline.benchmarks.base import Example
from pipeline.benchmarks.megatron_lm import OpenEngine, megatron_engine
from pipeline.benchmarks.records import (
    EVALUATION,
    EXAMPLES,
    EvaluationRecord,
    Provenance,
    Settings,
    check_rows,
    verified_examples,
)
from pipeline.data.cache import MANIFEST, sha256
from pipeline.data.errors import DataError
from pipeline.data.json_files import Row, agree, read_object
from pipeline.data.settings import TemplateParts
from pipeline.data.templates import Template
from pipeline.data.tokenizer import Tokenizer, ids_needed
from pipeline.specs import RETRAIN, EvaluateSpec

NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
ANSWERS = "answers"  # folder below the output with the answers so far, for the run after one that was killed


def evaluate(
    spec: EvaluateSpec, clock: Clock | None = None, open_engine: OpenEngine = megatron_engine
) -> EvaluationRecord | None:
    """Evaluate the model of ``spec`` and write the results on rank 0.

    What can be checked before the model is loaded is checked before.

    Returns:
        the record that was written, or ``None`` on other ranks

    Raises:
        DataError: data, a score or retrain's evaluation cannot be used; the message names the file, or set and example
    """
    clock = clock or Clock()
    # A folder with a record is complete, and an older one is not this evaluation's.
    (spec.output / EVALUATION).unlink(missing_ok=True)
    options, benchmark = spec.options, family(spec.options.family)
    inputs = read_inputs(spec)
    requests = benchmark.requests(spec.data, options, inputs.tokenizer, inputs.vocabulary)

    record = None
    answers = spec.output / ANSWERS
    budgets = spec.token_budget, spec.answers_budget
    with open_engine(spec.checkpoint, spec.runtime, inputs.tokenizer, budgets, answers) as engine:
        clock.mark("startup")
        examples = requests(engine)
        clock.mark("work", "answers")
        if engine.rank == 0:
            # Retrain is what the others are compared with; its own comparison is with itself.
            reference = examples if inputs.retain is None and spec.model_id == RETRAIN else inputs.retain
            metrics = benchmark.compute_metrics(examples, options, reference)
            reasons = benchmark.collapse(examples, options, metrics)
            clock.mark("work", "metrics")
            decoding = "greedy and sampled" if engine.drew else "greedy"
            record = _write_examples(spec, examples, metrics, inputs.hashes, decoding)
            clock.mark("write")
            counted = {key: metrics[key] for key in ("empty_generations", "repetitive_generations") if key in metrics}
            flags = ["collapsed"] if reasons else []
            clock.write(spec.output, flags, collapsed_because=reasons, **counted, **asdict(engine.amounts))
            # Last, because a folder that has a record is complete.
            record.write(spec.output / EVALUATION)
            for reason in reasons:
                print(f"evaluate: warning: {spec.model_id} has collapsed: {reason}", file=sys.stderr)
        engine.discard_answers()
    return record


@dataclass(frozen=True)
class Inputs:
    """What an evaluation reads beside its requests, checked.

    Attributes:
        hashes: SHA-256 of each evaluated set's file
        tokenizer: tokenizer of the data
        retain: examples of retrain's evaluation, where one is given
        vocabulary: number of the model's token ids
    """

    hashes: dict[str, str]
    tokenizer: Tokenizer
    retain: list[Row] | None
    vocabulary: int


def read_inputs(spec: EvaluateSpec) -> Inputs:
    """Read and check everything that is given with an evaluation.

    Raises:
        DataError: data, model, tokenizer and retrain's evaluation do not go together
    """
    hashes = _data_hashes(spec, family(spec.options.family).sets(spec.options))
    tokenizer = Tokenizer.load(spec.data / "tokenizer")
    named = read_object(spec.data / MANIFEST).get("template", "plain")
    parts = TemplateParts.model_validate(named) if isinstance(named, dict) else named
    template = Template.of(parts)
    tokenizer.ends_with(spec.checkpoint, template)
    retain = None if spec.retain_evaluation is None else read_retain_examples(spec.retain_evaluation, spec, hashes)
    if retain is None and spec.model_id != RETRAIN and spec.options.needs_retrain:
        raise DataError(f"retain_evaluation: is missing: {spec.options.needs_retrain}")
    return Inputs(hashes, tokenizer, retain, _check_model(spec, tokenizer, template.special_tokens))


def _write_examples(
    spec: EvaluateSpec, examples: Sequence[Example], metrics: dict[str, float], hashes: dict[str, str], decoding: str
) -> EvaluationRecord:
    """Write ``examples.jsonl``; returns the record that belongs to it."""
    lines = (json.dumps(example, ensure_ascii=False, allow_nan=False) + "\n" for example in examples)
    write_text(spec.output / EXAMPLES, "".join(lines))
    sets = dict.fromkeys(example["set"] for example in examples)
    return EvaluationRecord(
        model=spec.model_id,
        benchmark=spec.benchmark,
        split=spec.split,
        seed=spec.seed,
        metrics=metrics,
        settings=Settings(
            options=spec.options.model_dump(mode="json"),
            decoding=decoding,
            precision=spec.runtime.precision,
            examples={name: sum(example["set"] == name for example in examples) for name in sets},
            data_sha256=hashes,
        ),
        provenance=Provenance(
            checkpoint=str(spec.checkpoint),
            data=str(spec.data),
            retain_evaluation=None if spec.retain_evaluation is None else str(spec.retain_evaluation),
            examples_sha256=sha256(spec.output / EXAMPLES),
        ),
    )


def read_retain_examples(folder: Path, spec: EvaluateSpec, hashes: dict[str, str]) -> list[Row]:
    """The examples of retrain's evaluation in ``folder``.

    Args:
        folder: folder with ``evaluation.json`` and ``examples.jsonl``
        spec: the evaluation that is compared with it
        hashes: SHA-256 of each evaluated set's file, which must be those that retrain was evaluated on

    Raises:
        DataError: it is not an evaluation of the same benchmark, split and data
    """
    path = folder / EVALUATION
    record = EvaluationRecord.read(path)
    wanted = {
        "benchmark": spec.benchmark,
        "split": spec.split,
        "settings.options.family": spec.options.family,
    }
    if not record.is_foreign:
        wanted |= {f"settings.data_sha256.{name}": digest for name, digest in hashes.items()}
    agree(path, record, wanted, "a model is compared with retrain on the same benchmark, split and data")
    examples = verified_examples(folder, record)
    if record.is_foreign:
        check_rows(examples, spec.data, folder)
    return examples


def _data_hashes(spec: EvaluateSpec, sets: Sequence[str]) -> dict[str, str]:
    """SHA-256 of each evaluated set's file; raises ``DataError`` where the manifest says something else."""
    path = spec.data / MANIFEST
    hashes = {name: sha256(spec.data / "evaluation" / f"{name}.jsonl") for name in sets}
    wanted = {f"evaluation.{name}.sha256": digest for name, digest in hashes.items()}
    wanted = {"family": spec.options.family, "forget_split": spec.split, **wanted}
    agree(path, read_object(path), wanted, "the folder holds other data, or files of it were changed")
    return hashes


def _check_model(spec: EvaluateSpec, tokenizer: Tokenizer, tokens: Sequence[str]) -> int:
    """The number of the model's token ids, among which the template's special ``tokens`` must be.

    The checkpoint's ``tokenizer.json``, where it has one, must be the data's but for limits on length.

    Raises:
        DataError: the model cannot be run, or the data were made with another tokenizer
    """
    path, data = spec.checkpoint / "config.json", spec.data / "tokenizer"
    config = read_object(path)
    size = config.get("vocab_size")
    needed = ids_needed(tokenizer, tokens)
    if not isinstance(size, int) or size < needed:
        raise DataError(f"{path}: vocab_size is {size!r}, but the tokenizer of {data} has {needed} ids")
    if (spec.checkpoint / "tokenizer.json").is_file():
        own = Tokenizer.load(spec.checkpoint)
        if own.eos_id != tokenizer.eos_id or own.backend.to_str() != tokenizer.backend.to_str():
            raise DataError(f"{spec.checkpoint}: its tokenizer is not that of {data}, which the data were made with")
    try:
        family_of(config).context(config)
    except ValueError as error:
        raise DataError(f"{path}: {error}") from error
    return size


def main(argv: Sequence[str] | None = None) -> None:
    """Run the program with the arguments ``argv``, by default those of the command line."""
    clock = Clock()
    parser = argparse.ArgumentParser(
        prog="python -m pipeline.steps.evaluate", description="Evaluate one model on one benchmark."
    )
    parser.add_argument("spec", type=Path, help="YAML file with an evaluate specification")
    spec = read(parser.parse_args(argv).spec, EvaluateSpec)
    try:
        record = evaluate(spec, clock)
    except DataError as error:
        raise SystemExit(f"evaluate: error: {error}") from error
    except OSError as error:
        if error.errno not in NO_SPACE:
            raise
        raise SystemExit(
            f"evaluate: error: {error.filename or spec.output}: {error.strerror}. The answers so far are kept in "
            f"{spec.output / ANSWERS}: the next run goes on from there"
        ) from error
    if record is not None:
        headline = [metric for metric in family(spec.options.family).metrics(spec.options) if metric.headline]
        found = ((m.title, record.metrics.get(m.key)) for m in headline)
        values = (f"{title} {value:.3g}" for title, value in found if value is not None)
        print(f"evaluate: {spec.model_id}: {', '.join(values)}", file=sys.stderr)


if __name__ == "__main__":
    main()
