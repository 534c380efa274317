"""TOFU (Maini et al. 2024, arXiv 2401.06121), with the metrics as open-unlearning defines them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from pipeline.benchmarks.base import Example, Item, Metric, avg_loss, read_rows
from pipeline.data.rows import DataError
from pipeline.metrics.aggregate import harmonic_mean, ks_p_value, mean
from pipeline.metrics.probability import normalised_probability, probability
from pipeline.metrics.text import repeats_itself, rouge_recall
from pipeline.metrics.truth_ratio import closer_to_1_better, true_better, truth_ratio

OPEN_UNLEARNING = "open-unlearning (locuslab/open-unlearning at d3d7cf9)"
TOFU = "TOFU (arXiv 2401.06121)"
SETS = {"forget": "Forget", "retain": "Retain", "real_authors": "Real authors", "world_facts": "World facts"}
PARAPHRASED = ("forget", "retain")  # sets whose truth ratio compares with a paraphrase of the answer
NORMALISED = ("real_authors", "world_facts")  # sets whose probability is the share among the answers of a row
UTILITY = (
    "retain_probability",
    "retain_rouge",
    "retain_truth_ratio",
    "real_authors_probability_normalised",
    "real_authors_rouge",
    "real_authors_truth_ratio",
    "world_facts_probability_normalised",
    "world_facts_rouge",
    "world_facts_truth_ratio",
)
NO_UTILITY = 1e-3


def _metrics() -> tuple[Metric, ...]:
    rows = [
        Metric(
            "forget_quality",
            "Forget quality",
            "higher",
            "p-value of the two-sided Kolmogorov-Smirnov test between the forget truth ratios of model and retrain",
            f"{TOFU}, section 2.2.2; {OPEN_UNLEARNING}",
            headline=True,
        ),
        Metric(
            "model_utility",
            "Model utility",
            "higher",
            "harmonic mean of probability, ROUGE-L recall and truth ratio on retain, real authors and world facts "
            "(probability normalised on the last two)",
            f"{TOFU}, section 2.2.1; {OPEN_UNLEARNING}",
            headline=True,
        ),
        Metric(
            "forget_truth_ratio",
            "Forget truth ratio",
            "one",
            "mean of min(R, 1/R), R = geometric mean probability of the perturbed answers / that of the paraphrased "
            "answer",
            f"{OPEN_UNLEARNING}, aggregator closer_to_1_better",
            headline=True,
        ),
    ]
    for name, title in SETS.items():
        forget = name == "forget"
        better = "lower" if forget else "higher"
        headline = name in ("forget", "retain")
        rows.append(
            Metric(
                f"{name}_probability",
                f"{title} probability",
                better,
                "mean of exp(mean log-probability of the answer's tokens, end token included)",
                OPEN_UNLEARNING,
                headline,
            )
        )
        if name in NORMALISED:
            rows.append(
                Metric(
                    f"{name}_probability_normalised",
                    f"{title} probability, normalised",
                    better,
                    "mean of P(answer) / (P(answer) + sum of P(perturbed answers)), each length-normalised",
                    OPEN_UNLEARNING,
                )
            )
        rows.append(
            Metric(
                f"{name}_rouge",
                f"{title} ROUGE-L",
                better,
                "mean ROUGE-L recall of the greedy answer, Porter stemmer on",
                OPEN_UNLEARNING,
                headline,
            )
        )
        rows.append(
            Metric(
                f"{name}_rouge1",
                f"{title} ROUGE-1",
                better,
                "mean ROUGE-1 recall of the greedy answer, Porter stemmer on",
                OPEN_UNLEARNING,
            )
        )
        if not forget:
            correct = "paraphrased" if name == "retain" else "true"
            rows.append(
                Metric(
                    f"{name}_truth_ratio",
                    f"{title} truth ratio",
                    better,
                    f"mean of max(0, 1 - R), R = geometric mean probability of the perturbed answers / that of the "
                    f"{correct} answer",
                    f"{OPEN_UNLEARNING}, aggregator true_better",
                )
            )
    rows.append(
        Metric("empty_generations", "Empty answers", "lower", "retain questions answered with no text", "this project")
    )
    rows.append(
        Metric(
            "repetitive_generations",
            "Repetitive answers",
            "lower",
            "retain questions whose answer repeats itself: fewer than half of its word 4-grams are distinct",
            "this project",
        )
    )
    return tuple(rows)


class Tofu:
    """Scores true, paraphrased and perturbed answers of four sets, and generates an answer to every question."""

    metrics = _metrics()
    sets = tuple(SETS)

    def amount(self, forget_rows: int) -> tuple[int, int]:
        """A row has its answer and five perturbed ones; of the forget and the retain set, of which at most 400 rows are
        scored, a paraphrase too. Real authors and world facts are 217 rows."""
        return 7 * (forget_rows + 400) + 6 * 217, forget_rows + 400 + 217

    def items(self, data: Path) -> list[Item]:
        """All rows of ``data/evaluation/<set>.jsonl``; raises ``DataError`` naming file, line and key of a bad one.

        Every target, paraphrased answers included, follows the original question.
        """
        return [item for name in self.sets for item in _read(name, Path(data) / "evaluation" / f"{name}.jsonl")]

    def recompute(
        self, examples: Sequence[Example], retain_examples: Sequence[Example] | None = None
    ) -> dict[str, float]:
        """All metrics of the table above, in its order; ``forget_quality`` only where ``retain_examples`` are given."""
        values: dict[str, float] = {}
        for name in self.sets:
            values |= _set_metrics(name, _of_set(examples, name))
        values["model_utility"] = harmonic_mean([values[key] for key in UTILITY])
        if retain_examples is not None:
            ratios = [_truth_ratio(example) for example in _of_set(examples, "forget")]
            retain = [_truth_ratio(example) for example in _of_set(retain_examples, "forget")]
            values["forget_quality"] = ks_p_value(ratios, retain)
        answers = [_generation(example) for example in _of_set(examples, "retain")]
        values["empty_generations"] = sum(not answer for answer in answers)
        values["repetitive_generations"] = sum(map(repeats_itself, answers))
        return {metric.key: values[metric.key] for metric in self.metrics if metric.key in values}

    def collapse(self, examples: Sequence[Example], metrics: Mapping[str, float]) -> list[str]:
        """Reasons: most answers to retain questions are empty or repeat themselves; model utility is 0.

        A model utility under 0.001, which published tables print as 0, counts as 0.
        """
        reasons = []
        retain = len(_of_set(examples, "retain"))
        bad = metrics["empty_generations"] + metrics["repetitive_generations"]
        if 2 * bad > retain:
            reasons.append(f"{bad} of {retain} retain questions have an empty answer or one that repeats itself")
        if metrics["model_utility"] < NO_UTILITY:
            worst = min(UTILITY, key=lambda key: metrics[key])
            reasons.append(f"model utility is {metrics['model_utility']:.3g}: {worst} is {metrics[worst]:.3g}")
        return reasons


def _read(name: str, path: Path) -> list[Item]:
    rows = read_rows(path)
    if not rows:
        raise DataError(f"{path}: no rows")
    items = []
    for number, row in enumerate(rows, 1):
        missing = {"index", "question", "answer", "prompt_ids", "generation_prompt_ids", "targets"} - row.keys()
        missing |= {f"targets.{key}" for key in _needed(name) - row.get("targets", {}).keys()}
        if missing:
            raise DataError(f"{path}, line {number}: missing {', '.join(sorted(missing))}")
        targets = {key: (row["prompt_ids"], ids) for key, ids in row["targets"].items()}
        empty = [key for key, (_, ids) in targets.items() if not ids]
        if empty or not row["prompt_ids"] or not row["generation_prompt_ids"]:
            raise DataError(f"{path}, line {number}: a prompt or target is empty {empty}")
        items.append(
            Item(name, row["index"], row["question"], row["answer"].strip(), targets, row["generation_prompt_ids"])
        )
    return items


def _needed(name: str) -> set[str]:
    return {"answer", "perturbed_0"} | ({"paraphrased"} if name in PARAPHRASED else set())


def _of_set(examples: Sequence[Example], name: str) -> list[Example]:
    found = [example for example in examples if example["set"] == name]
    if not found:
        raise DataError(f"no examples of set {name!r}")
    return found


def _perturbed(example: Example) -> list[float]:
    """Losses of all perturbed answers of an example, at least one."""
    count = max(1, sum(key.startswith("perturbed_") for key in example["scores"]))
    return [avg_loss(example, f"perturbed_{i}") for i in range(count)]


def _truth_ratio(example: Example) -> float:
    correct = "paraphrased" if example["set"] in PARAPHRASED else "answer"
    return truth_ratio(avg_loss(example, correct), _perturbed(example))


def _generation(example: Example) -> str:
    text = example["generation"]
    if not isinstance(text, str):
        raise DataError(f"set {example['set']!r}, example {example['index']}: no generation")
    return text


def _set_metrics(name: str, examples: Sequence[Example]) -> dict[str, float]:
    rouge = rouge_recall([example["answer"] for example in examples], [_generation(example) for example in examples])
    ratio = closer_to_1_better if name == "forget" else true_better
    values = {
        "probability": mean([probability(avg_loss(example, "answer")) for example in examples]),
        "rouge": mean(rouge["rougeL"]),
        "rouge1": mean(rouge["rouge1"]),
        "truth_ratio": mean([ratio(_truth_ratio(example)) for example in examples]),
    }
    if name in NORMALISED:
        values["probability_normalised"] = mean(
            [normalised_probability(avg_loss(example, "answer"), _perturbed(example)) for example in examples]
        )
    return {f"{name}_{key}": value for key, value in values.items()}


FAMILY = Tofu()
