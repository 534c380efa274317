"""The metrics of ``custom``, computed from examples as the catalogue defines them."""

from __future__ import annotations

import math
from collections.abc import Sequence

from pipeline.benchmarks import degenerate_answers, leaks, privacy
from pipeline.benchmarks.base import Example, avg_loss, generation, of_set, raw_score, tokenwise
from pipeline.benchmarks.custom.catalogue import catalogue
from pipeline.benchmarks.custom.options import FORGOTTEN, CustomOptions
from pipeline.metrics.aggregate import ks_p_value, mean
from pipeline.metrics.memorisation import exact_memorisation, extraction_strength
from pipeline.metrics.probability import LARGEST, probability
from pipeline.metrics.text import rouge_recall
from pipeline.metrics.truth_ratio import closer_to_1_better, true_better, truth_ratio

REST = "rest"  # target of a piece of text: its second half; "answer" is all of it


def compute(
    examples: Sequence[Example], options: CustomOptions, retain_examples: Sequence[Example] | None
) -> dict[str, float]:
    """All metrics of the catalogue, in its order; forget quality only where ``retain_examples`` are given.

    Raises:
        DataError: an example, or one of retrain's, lacks what a metric needs
    """
    values: dict[str, float] = {}
    if options.attacked is not None:
        values |= privacy.compute_membership(examples, options, retain_examples, options.attacked)
    for name in options.asked:
        values |= _set_metrics(name, of_set(examples, name), options)
    for name in options.leaking:
        values |= leaks.compute(options.leak, name, of_set(examples, name))
    forget = options.asked.get("forget")
    if retain_examples is not None and forget is not None and forget.perturbed:
        with privacy.naming_retrain():
            retrain = [_truth_ratio(example, options) for example in of_set(retain_examples, "forget")]
        ratios = [_truth_ratio(example, options) for example in of_set(examples, "forget")]
        values["forget_quality"] = ks_p_value(ratios, retrain)
    values |= degenerate_answers.counts(of_set(examples, kept(options)))
    return {metric.key: values[metric.key] for metric in catalogue(options) if metric.key in values}


def kept(options: CustomOptions) -> str:
    """The set that shows whether a model still answers: the retain set's questions, or its texts."""
    return "retain" if "retain" in options.asked else "retain_texts"


def _set_metrics(name: str, examples: Sequence[Example], options: CustomOptions) -> dict[str, float]:
    asked = options.asked[name]
    values: dict[str, float] = {}
    if asked.form in ("questions", "cloze"):
        values["probability"] = mean([probability(avg_loss(example, "answer")) for example in examples])
    if asked.form == "cloze":
        values["accuracy"] = mean([float(_begins_with_answer(example)) for example in examples])
        return {f"{name}_{key}": value for key, value in values.items()}
    if asked.part != "holdout":
        answers, found = [example["answer"] for example in examples], [generation(example) for example in examples]
        values["rouge"] = mean(rouge_recall(answers, found)["rougeL"])
    values["perplexity"] = _perplexity(examples)
    if asked.perturbed:
        aggregate = closer_to_1_better if asked.part in FORGOTTEN else true_better
        values["truth_ratio"] = mean([aggregate(_truth_ratio(example, options)) for example in examples])
    if options.remembered(name):
        target = "answer" if asked.form == "questions" else REST
        correct = [tokenwise(example, target, "correct")[:-1] for example in examples]
        values["extraction_strength"] = mean([extraction_strength(row) for row in correct])
        values["exact_memorisation"] = mean([exact_memorisation(row) or 0.0 for row in correct])
    return {f"{name}_{key}": value for key, value in values.items()}


def _perplexity(examples: Sequence[Example]) -> float:
    scores = [raw_score(example, "answer") for example in examples]
    losses = [avg_loss(example, "answer") * score["tokens"] for example, score in zip(examples, scores, strict=True)]
    return math.exp(min(math.fsum(losses) / sum(score["tokens"] for score in scores), LARGEST))


def _truth_ratio(example: Example, options: CustomOptions) -> float:
    count = max(1, sum(key.startswith("perturbed_") for key in example["scores"]))
    wrong = [avg_loss(example, f"perturbed_{i}") for i in range(count)]
    return truth_ratio(
        avg_loss(example, "paraphrased" if options.asked[example["set"]].paraphrased else "answer"), wrong
    )


def _begins_with_answer(example: Example) -> bool:
    return " ".join(generation(example).casefold().split()).startswith(" ".join(example["answer"].casefold().split()))
