"""Tasks of lm-evaluation-harness: loaded from its index, local files or prepared questions, and put to a model.

What comes back of a document is numbers alone (``pipeline.benchmarks.lm_eval.evaluate``).
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import random
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.benchmarks.lm_eval.load import UNFILTERED, Loaded
from pipeline.benchmarks.lm_eval.options import CHOICE, LmEvalOptions
from pipeline.data.errors import DataError
from pipeline.metrics.text import repeats_itself

if TYPE_CHECKING:
    from pipeline.benchmarks.base import LM


def _metric_name(metric: str, chosen: str) -> str:
    """``acc`` for answers as they are, ``acc,filter`` for filtered ones."""
    return metric if chosen == UNFILTERED else f"{metric},{chosen}"


def examples_of(loaded: Loaded, options: LmEvalOptions, model: LM) -> list[dict[str, Any]]:
    """Have the harness put the tasks to a model; returns an example for each document, by task."""
    import numpy as np
    from jinja2 import TemplateError
    from lm_eval.evaluator import evaluate

    from pipeline.benchmarks.lm_eval.model import HarnessLM

    random.seed(0)
    np.random.seed(options.seed)
    lm = HarnessLM(model)
    try:
        results = evaluate(lm, {"tasks": loaded.tasks, "groups": {}}, limit=options.limit, bootstrap_iters=0)
    except TemplateError as error:  # whose message may hold a question
        raise DataError(f"a task's template cannot be rendered ({type(error).__name__})") from None
    examples = []
    for name, task in loaded.tasks.items():
        documents: dict[int, list[dict[str, Any]]] = {}  # a sample of each filter
        for sample in results["samples"][name]:
            documents.setdefault(sample["doc_id"], []).append(sample)
        aggregations = _aggregations(task)
        for index, samples in sorted(documents.items()):
            example = {
                "set": name,
                "index": index,
                "doc_hash": samples[0]["doc_hash"],
                "cut": (name, index) in lm.cut,
                "groups": loaded.groups.get(name, {}),
                **_numbers(task, samples, options, aggregations),
            }
            examples.append(example)
    return examples


def _aggregations(task: Any) -> dict[str, str]:
    """By metric, the harness's name of the function that makes one number of all documents'."""
    from lm_eval.api.registry import AGGREGATION_REGISTRY

    names = {id(function): name for name, function in AGGREGATION_REGISTRY.items()}
    return {metric: names.get(id(function), "") for metric, function in task.aggregation().items()}


def _numbers(
    task: Any, samples: Sequence[Mapping[str, Any]], options: LmEvalOptions, aggregations: Mapping[str, str]
) -> dict[str, Any]:
    """What an example holds of a document: log-probabilities of choices, or the values of metrics."""
    first, place = samples[0], f"task {task.task_name!r}, document {samples[0]['doc_id']}"
    found: dict[str, Any] = {"values": {}, "aggregations": {}}
    if task.OUTPUT_TYPE == "multiple_choice" and not callable(task.config.process_results):
        found |= _choices(task, first, place)
    for sample in samples:
        for metric in sample["metrics"]:
            key = _metric_name(metric, sample["filter"])
            if key not in options.metrics or (key in CHOICE and "log_probs" in found):
                continue
            if not aggregations.get(metric):
                raise DataError(f"task {task.task_name!r}: {metric!r} is aggregated by a function of its own")
            found["values"][key] = _plain(sample[metric], f"{place}: {metric!r}")
            found["aggregations"][key] = aggregations[metric]
    if task.OUTPUT_TYPE == "generate_until":
        texts = [text for response in first["resps"] for text in response]
        found["generations"] = len(texts)
        found["empty"] = sum(not text.strip() for text in texts)
        found["repetitive"] = sum(map(repeats_itself, texts))
    return found


def _choices(task: Any, sample: Mapping[str, Any], place: str) -> dict[str, Any]:
    texts, gold = task.doc_to_choice(sample["doc"]), sample["target"]
    if task.multiple_input:
        gold = task.doc_to_text(sample["doc"])
    places = [texts.index(one) if isinstance(one, str) and one in texts else one for one in _listed(gold)]
    scores = [responses[0] for responses in sample["resps"]][: len(texts)]
    if not all(isinstance(one, int) and 0 <= one < len(texts) for one in places):
        raise DataError(f"{place}: the right answer is none of its {len(texts)} choices")
    if not all(math.isfinite(log_prob) for log_prob, _ in scores):
        raise DataError(f"{place}: log-probabilities {[log_prob for log_prob, _ in scores]}")
    return {
        "log_probs": [float(log_prob) for log_prob, _ in scores],
        "greedy": [bool(greedy) for _, greedy in scores],
        "characters": [len(text) for text in texts],
        "bytes": [len(text.encode("utf-8")) for text in texts],
        "gold": [int(one) for one in places] if isinstance(gold, list) else int(places[0]),
        **({"right": bool(sample["acc"])} if "acc" in sample else {}),
    }


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _plain(value: Any, place: str) -> Any:
    """A number, or a list of numbers, as JSON has them; raises ``DataError`` for a text, which examples do not keep."""
    if isinstance(value, tuple | list) or type(value).__name__ == "ndarray":
        return [_plain(one, place) for one in value]
    if isinstance(value, str) or not hasattr(value, "__float__"):
        raise DataError(f"{place} is made of texts, which are not kept; name other metrics in 'metrics'")
    number = float(value)
    if not math.isfinite(number):
        raise DataError(f"{place} is {number}")
    return int(value) if isinstance(value, bool | int) else number


@contextlib.contextmanager
def quiet(shown: bool) -> Iterator[None]:
    """The harness and ``datasets`` say nothing, for a warning of a wrong answer has the whole question; the progress
    bars go to nowhere unless ``shown``."""
    loggers = [logging.getLogger(name) for name in ("lm_eval", "datasets")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        with contextlib.ExitStack() as stack:
            if not shown:
                nowhere = stack.enter_context(Path(os.devnull).open("w"))
                stack.enter_context(contextlib.redirect_stderr(nowhere))
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
