"""open-unlearning's logs as an evaluation of ours: retrain's, to compare with, or anybody's."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from megatron_ext.atomic_files import write_text
from pipeline.benchmarks import family
from pipeline.benchmarks.base import Example
from pipeline.benchmarks.records import EVALUATION, EXAMPLES, NOT_STATED, EvaluationRecord, Provenance, Settings
from pipeline.data.cache import sha256
from pipeline.data.errors import DataError
from pipeline.data.json_files import Row, read_object, short
from pipeline.exchange.names import FAMILIES, MUSE_ROUGE, TOFU_SETS

ENDS = tuple(f"{logs.evaluator}_{kind}.json" for logs in FAMILIES.values() for kind in ("EVAL", "SUMMARY"))


def family_of_log(path: Path) -> str:
    """The benchmark family of a log, by its file's name.

    Raises:
        DataError: the name is none of open-unlearning's
    """
    for name, logs in FAMILIES.items():
        if path.name.startswith(f"{logs.evaluator}_") and path.name in ENDS:
            return name
    raise DataError(f"{path}: not a log of open-unlearning's by its name; these are {', '.join(ENDS)}")


def min_k_auc(path: Path) -> float | None:
    """The AUC of Min-40% in a log, from which PrivLeak follows; ``None`` where it is not there.

    Raises:
        DataError: the file cannot be read, or its value is no AUC
    """
    value = _value(path, "mia_min_k", read_object(path).get("mia_min_k"))
    if value is not None and not 0 <= value <= 1:
        raise DataError(f"{path}: mia_min_k: agg_value is {value}, not an AUC")
    return value


def has_losses(path: Path) -> bool:
    """Whether a log has the losses of forget and holdout answers, with which the attack ``reference`` compares.

    The attack reads scores of single tokens of MUSE's texts, which no log has.
    """
    log = read_object(path)
    held = log.get("mia_loss")
    return family_of_log(path) == "tofu" and "forget_Q_A_Prob" in log and isinstance(held, dict) and "holdout" in held


def read_log(path: Path, output: Path, *, model: str, benchmark: str, split: str) -> EvaluationRecord:
    """Write ``evaluation.json`` and ``examples.jsonl`` from a log; a summary has no examples.

    Metrics that we have not are left out. An example holds what the log does: losses of answers, and generated texts.

    Args:
        path: ``TOFU_EVAL.json``, ``MUSE_EVAL.json``, or a summary
        output: folder for both files
        model: whose evaluation it is: ``retrain``, or another name
        benchmark: the benchmark file's name
        split: the forget split

    Returns:
        the record

    Raises:
        DataError: the file is no such log; the message names the key
    """
    name = family_of_log(path)
    found = read_object(path)
    metrics = {
        ours: value
        for ours, theirs in FAMILIES[name].metrics.items()
        if (value := _value(path, theirs, found.get(theirs))) is not None
    }
    if not metrics:
        raise DataError(f"{path}: none of open-unlearning's metrics is in it")
    examples: list[Example] = []
    if path.name.endswith("_EVAL.json"):
        examples = _tofu(path, found) if name == "tofu" else _muse(path, found)
    output.mkdir(parents=True, exist_ok=True)
    lines = (json.dumps(example, ensure_ascii=False, allow_nan=False) + "\n" for example in examples)
    write_text(output / EXAMPLES, "".join(lines))
    options = family(name).options.model_validate({"family": name, **_options(metrics)})
    sets = dict.fromkeys(example["set"] for example in examples)
    record = EvaluationRecord(
        model=model,
        benchmark=benchmark,
        split=split,
        seed=None,
        metrics=metrics,
        settings=Settings(
            options=options.model_dump(mode="json"),
            decoding="greedy",
            precision=NOT_STATED,
            examples={name: sum(example["set"] == name for example in examples) for name in sets},
            data_sha256={},
        ),
        provenance=Provenance(
            checkpoint=model,
            data=f"open-unlearning's {path.name}",
            retain_evaluation=None,
            examples_sha256=sha256(output / EXAMPLES),
        ),
    )
    record.write(output / EVALUATION)
    return record


def _options(metrics: Mapping[str, float]) -> dict[str, Any]:
    """The settings that the metrics follow from."""
    return {
        "memorisation": not metrics.keys().isdisjoint(("extraction_strength", "exact_memorisation")),
        "membership": [key.removeprefix("mia_") for key in metrics if key.startswith("mia_")],
        "privleak": "privleak" in metrics,
    }


def _value(path: Path, key: str, log: Any) -> float | None:
    """A metric's value: ``agg_value`` of a log, or the number that a summary has."""
    value = log.get("agg_value") if isinstance(log, dict) else log
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise DataError(f"{path}: {key}: agg_value is {short(value)}, not a number")
    return value


def _rows(path: Path, log: Mapping[str, Any], key: str) -> Iterator[tuple[int, Row]]:
    """``value_by_index`` of a metric, where the log has it."""
    yield from _indexed(path, key, log.get(key) or {})


def _indexed(path: Path, key: str, log: Any) -> Iterator[tuple[int, Row]]:
    values = log.get("value_by_index", {}) if isinstance(log, dict) else None
    if not isinstance(values, dict):
        raise DataError(f"{path}: {key}: expected an object with 'value_by_index', got {short(log)}")
    for index, value in values.items():
        if not index.isdecimal() or not isinstance(value, dict):
            raise DataError(f"{path}: {key}: value_by_index: {index!r} is {short(value)}, not values of an example")
        yield int(index), value


def _tofu(path: Path, log: Mapping[str, Any]) -> list[Example]:
    examples: dict[tuple[str, int], Row] = {}

    def scores(name: str, index: int) -> Row:
        return _example(examples, name, index)["scores"]

    for name, theirs in TOFU_SETS.items():
        for kind, target in (("Prob", "answer"), ("PARA_Prob", "paraphrased")):
            key = f"{theirs}_Q_A_{kind}"
            for index, value in _rows(path, log, key):
                scores(name, index)[target] = {"avg_loss": _loss(path, key, index, value.get("avg_loss"))}
        key = f"{theirs}_Q_A_PERT_Prob"
        for index, value in _rows(path, log, key):
            given = value.get("avg_loss")
            losses = given if isinstance(given, list) else [given]
            for place, loss in enumerate(losses):
                scores(name, index)[f"perturbed_{place}"] = {"avg_loss": _loss(path, key, index, loss)}
        _add_answers(path, log, f"{theirs}_Q_A_ROUGE", name, examples)
    attack = log.get("mia_loss")
    side = (attack.get("holdout") or {}) if isinstance(attack, dict) else {}  # a number alone has no rows
    for index, value in _indexed(path, "mia_loss.holdout", side):
        loss = _loss(path, "mia_loss.holdout", index, value.get("score"))
        scores("holdout", index)["answer"] = {"avg_loss": loss}
    return list(examples.values())


def _muse(path: Path, log: Mapping[str, Any]) -> list[Example]:
    examples: dict[tuple[str, int], Row] = {}
    for name, theirs in MUSE_ROUGE.items():
        _add_answers(path, log, theirs, name, examples)
    return list(examples.values())


def _add_answers(path: Path, log: Mapping[str, Any], key: str, name: str, examples: dict[tuple[str, int], Row]) -> None:
    """What was asked, what is true and what was generated, from a log of ROUGE scores."""
    asked, answer = ("prompt", "gt") if name == "verbmem" else ("question", "answer")
    for index, value in _rows(path, log, key):
        example = _example(examples, name, index)
        for ours, theirs in ((asked, "input"), (answer, "ground_truth"), ("generation", "generation")):
            text = value.get(theirs)
            if not isinstance(text, str):
                raise DataError(f"{path}: {key}: value_by_index: {index}: {theirs} is {short(text)}, not a text")
            example[ours] = text


def _example(examples: dict[tuple[str, int], Row], name: str, index: int) -> Row:
    return examples.setdefault((name, index), {"set": name, "index": index, "scores": {}})


def _loss(path: Path, key: str, index: int, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise DataError(f"{path}: {key}: value_by_index: {index}: {short(value)} is no loss")
    return value
