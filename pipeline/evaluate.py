"""Score and question one model on one benchmark: ``python -m pipeline.evaluate SPEC.yaml``, on every rank.

The specification is a ``pipeline.specs.EvaluateSpec``. Rank 0 writes into its ``output``: ``examples.jsonl``, the raw
results of every example; ``summary.json``, times and flags; and last ``evaluation.json``, whose metrics
``python -m pipeline.metrics examples.jsonl`` computes again without the model.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from megatron_ext.families import family_of
from megatron_ext.files import write_json, write_text
from megatron_ext.specs import read
from megatron_ext.summary import Clock
from pipeline.benchmarks import Item, family
from pipeline.benchmarks.base import SCHEMA, Example, read_rows
from pipeline.data.cache import MANIFEST, sha256
from pipeline.data.rows import DataError
from pipeline.data.tokenizer import Tokenizer
from pipeline.specs import EvaluateSpec

if TYPE_CHECKING:
    from megatron_ext.scoring import Score

Pair = tuple[list[int], list[int]]


class Engine(Protocol):
    """A loaded model that scores and generates. Every rank calls it with the same arguments and gets every result."""

    rank: int

    def score(self, pairs: Sequence[Pair]) -> Sequence[Score]:
        """Log-probability and token count of each (prompt, target); equal pairs are computed once."""

    def generate(self, prompts: Sequence[list[int]], end_id: int) -> Sequence[list[int]]:
        """Greedy continuation of each prompt, up to and without the end token."""


@contextmanager
def megatron_engine(spec: EvaluateSpec) -> Iterator[Engine]:
    """The model of ``spec.checkpoint`` over the ranks of ``spec.runtime``."""
    from megatron_ext import runtime

    with runtime.start(spec.runtime, seed=0) as ranks:
        # After start(), which settles device and warnings before megatron-core is imported.
        from megatron_ext import weights
        from megatron_ext.generation import generate
        from megatron_ext.scoring import ScoreRequest, score

        model = weights.load(spec.checkpoint, ranks)

        class Megatron:
            rank = ranks.world_rank

            def score(self, pairs: Sequence[Pair]) -> Sequence[Score]:
                requests = [ScoreRequest(prompt=prompt, target=target) for prompt, target in pairs]
                return score(model, ranks, requests, spec.token_budget)

            def generate(self, prompts: Sequence[list[int]], end_id: int) -> Sequence[list[int]]:
                return generate(model, ranks, prompts, spec.max_new_tokens, [end_id], spec.token_budget)

        yield Megatron()


def evaluate(
    spec: EvaluateSpec,
    clock: Clock | None = None,
    open_engine: Callable[[EvaluateSpec], AbstractContextManager[Engine]] = megatron_engine,
) -> dict[str, Any] | None:
    """Evaluate, write the files on rank 0 and return what ``evaluation.json`` holds; other ranks return ``None``.

    Raises ``DataError`` that names
    the file, or the set and example, of data, a score or a retain evaluation that will not do; what can be checked
    before the model is loaded is checked before.
    """
    clock = clock or Clock()
    benchmark = family(spec.family)
    hashes = _data_hashes(spec, benchmark.sets)
    items = benchmark.items(spec.data)
    retain = None if spec.retain_evaluation is None else read_retain_evaluation(spec.retain_evaluation, spec, hashes)
    tokenizer = Tokenizer.load(spec.data / "tokenizer")
    context = _check_model(spec, tokenizer, items)

    with open_engine(spec) as engine:
        rank = engine.rank
        clock.mark("startup")
        pairs = [pair for item in items for pair in item.targets.values()]
        scores = engine.score(pairs)
        clock.mark("work", "scoring")
        prompts = [item.generation_prompt for item in items if item.generation_prompt is not None]
        answers = engine.generate(prompts, tokenizer.eos_id)
        clock.mark("work", "generation")
    if rank != 0:
        return None

    examples = _examples(items, scores, map(tokenizer.decode, answers))
    # Retrain is what the others are compared with; its own comparison is with itself.
    reference = examples if retain is None and spec.model_id == "retrain" else retain
    metrics = benchmark.recompute(examples, reference)
    reasons = benchmark.collapse(examples, metrics)
    clock.mark("work", "metrics")

    lines = (json.dumps(example, ensure_ascii=False, allow_nan=False) + "\n" for example in examples)
    write_text(spec.output / "examples.jsonl", "".join(lines))
    evaluation = {
        "schema": SCHEMA,
        "model": spec.model_id,
        "benchmark": spec.benchmark,
        "split": spec.split,
        "seed": spec.seed,
        "metrics": metrics,
        "settings": {
            "family": spec.family,
            "decoding": "greedy",
            "max_new_tokens": spec.max_new_tokens,
            "precision": spec.runtime.precision,
            "examples": {name: sum(item.set == name for item in items) for name in benchmark.sets},
            "data_sha256": hashes,
        },
        "provenance": {
            "checkpoint": str(spec.checkpoint),
            "data": str(spec.data),
            "retain_evaluation": None if spec.retain_evaluation is None else str(spec.retain_evaluation),
            "examples_sha256": sha256(spec.output / "examples.jsonl"),
        },
    }
    clock.mark("write")
    clock.write(
        spec.output,
        flags=["collapsed"] if reasons else [],
        collapsed_because=reasons,
        **{key: metrics[key] for key in ("empty_generations", "repetitive_generations") if key in metrics},
        scored_sequences=len(pairs),
        scored_tokens=sum(len(target) for _, target in pairs),
        generated_sequences=len(prompts),
        generated_tokens=sum(map(len, answers)),
        # Shorter than asked for because prompt and answer fill the model's context.
        cut_generations=sum(
            len(answer) < spec.max_new_tokens and len(prompt) + len(answer) >= context
            for prompt, answer in zip(prompts, answers, strict=True)
        ),
    )
    write_json(spec.output / "evaluation.json", evaluation)
    for reason in reasons:
        print(f"evaluate: warning: {spec.model_id} has collapsed: {reason}", file=sys.stderr)
    return evaluation


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
        "settings.family": spec.family,
        **{f"settings.data_sha256.{name}": digest for name, digest in hashes.items()},
    }
    _agree(path, found, wanted, "forget quality compares a model with retrain on the same benchmark, split and data")
    examples = folder / "examples.jsonl"
    if sha256(examples) != found["provenance"]["examples_sha256"]:
        raise DataError(f"{examples}: not the examples that {path} was computed from")
    return read_rows(examples)


def _data_hashes(spec: EvaluateSpec, sets: Sequence[str]) -> dict[str, str]:
    """SHA-256 of each evaluated set's file; raises ``DataError`` where the manifest says something else."""
    path = spec.data / MANIFEST
    hashes = {name: sha256(spec.data / "evaluation" / f"{name}.jsonl") for name in sets}
    wanted = {f"evaluation.{name}.sha256": digest for name, digest in hashes.items()}
    wanted = {"family": spec.family, "forget_split": spec.split, **wanted}
    _agree(path, _read_json(path), wanted, "the folder holds other data, or files of it were changed")
    return hashes


def _check_model(spec: EvaluateSpec, tokenizer: Tokenizer, items: Sequence[Item]) -> int:
    """The context of the model; raises ``DataError`` where it cannot read ids of the data, or reads others into them.

    The checkpoint's ``tokenizer.json``, where it has one, must be the data's but for limits on length.
    """
    path, data = spec.checkpoint / "config.json", spec.data / "tokenizer"
    config = _read_json(path)
    size = config.get("vocab_size")
    if not isinstance(size, int) or size < tokenizer.vocab_size:
        raise DataError(f"{path}: vocab_size is {size!r}, but the tokenizer of {data} has {tokenizer.vocab_size} ids")
    for item in items:
        largest = max(max(prompt + target) for prompt, target in item.targets.values())
        if largest >= size:
            raise DataError(f"{spec.data}: set {item.set!r}, example {item.index}: id {largest}, but {path} has {size}")
    if (spec.checkpoint / "tokenizer.json").is_file():
        own = Tokenizer.load(spec.checkpoint)
        if own.eos_id != tokenizer.eos_id or own.backend.to_str() != tokenizer.backend.to_str():
            raise DataError(f"{spec.checkpoint}: its tokenizer is not that of {data}, which the data were made with")
    try:
        return family_of(config).context(config)
    except ValueError as error:
        raise DataError(f"{path}: {error}") from error


def _agree(path: Path, found: dict[str, Any], wanted: dict[str, Any], why: str) -> None:
    """Raise ``DataError`` where a value at a dotted key of ``found``, what ``path`` holds, is not the wanted one."""
    for key, value in wanted.items():
        given: Any = found
        for part in key.split("."):
            given = given.get(part) if isinstance(given, dict) else None
        if given != value:
            raise DataError(f"{path}: {key} is {given!r}, but this evaluation's is {value!r}: {why}")


def _examples(items: Sequence[Item], scores: Sequence[Score], generations: Iterator[str]) -> list[dict[str, Any]]:
    """The lines of ``examples.jsonl``; raises ``DataError`` for a score that is missing or not finite."""
    wanted = sum(len(item.targets) for item in items)
    if len(scores) != wanted:
        raise DataError(f"{len(scores)} scores were computed for {wanted} targets")
    following = iter(scores)
    examples = []
    for item in items:
        raw = {}
        for name, (_, target) in item.targets.items():
            score = next(following)
            if not math.isfinite(score.log_prob) or score.tokens != len(target):
                raise DataError(
                    f"set {item.set!r}, example {item.index}: target {name!r} of {len(target)} tokens was given the "
                    f"log-probability {score.log_prob} over {score.tokens} tokens"
                )
            avg_loss = -score.log_prob / score.tokens
            raw[name] = {"log_prob": score.log_prob, "tokens": score.tokens, "avg_loss": avg_loss}
        example = {"set": item.set, "index": item.index, "question": item.question, "answer": item.answer}
        generation = None if item.generation_prompt is None else next(generations).strip()
        examples.append({**example, "generation": generation, "scores": raw})
    return examples


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read: {error}") from error


def main(argv: Sequence[str] | None = None) -> None:
    clock = Clock()
    parser = argparse.ArgumentParser(prog="python -m pipeline.evaluate", description=__doc__.splitlines()[0])
    parser.add_argument("spec", type=Path, help="YAML file with an evaluate specification")
    spec = read(parser.parse_args(argv).spec, EvaluateSpec)
    try:
        evaluation = evaluate(spec, clock)
    except DataError as error:
        raise SystemExit(f"evaluate: error: {error}") from error
    if evaluation is not None:
        headline = [metric for metric in family(spec.family).metrics if metric.headline]
        values = (f"{m.title} {evaluation['metrics'][m.key]:.3g}" for m in headline if m.key in evaluation["metrics"])
        print(f"evaluate: {spec.model_id}: {', '.join(values)}", file=sys.stderr)


if __name__ == "__main__":
    main()
