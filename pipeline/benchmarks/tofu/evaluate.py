"""TOFU (Maini et al. 2024, arXiv 2401.06121), with the metrics as open-unlearning defines them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from pipeline.benchmarks import degenerate_answers as answers
from pipeline.benchmarks import privacy, requests
from pipeline.benchmarks.base import Cost, Example, Metric, Requests, avg_loss, generation, of_set, where
from pipeline.benchmarks.privacy import HOLDOUT, OPEN_UNLEARNING, UNENDED, LeakOptions
from pipeline.data.errors import DataError
from pipeline.data.json_files import read_rows
from pipeline.metrics.aggregate import harmonic_mean, ks_p_value, mean
from pipeline.metrics.probability import normalised_probability, probability, share
from pipeline.metrics.text import rouge_recall
from pipeline.metrics.truth_ratio import (
    arithmetic_truth_ratio,
    closer_to_1_better,
    prob_mean,
    true_better,
    truth_ratio,
)

if TYPE_CHECKING:
    from pipeline.data.tokenizer import Tokenizer

TOFU = "TOFU (arXiv 2401.06121)"
TOFU_CODE = "TOFU's own code (locuslab/tofu, utils.py and config/eval_everything.yaml)"
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
ORIGINAL_ROWS = 300  # of each set, in TOFU's own evaluation
ORIGINAL_LENGTH = 200  # tokens of prompt and greedy answer together, there
ORIGINAL_GENERATION = "generation__tofu"


class TofuOptions(LeakOptions):
    """What is asked of a model beside the scores of TOFU's paper, and how long its answers may be."""

    family: Literal["tofu"] = "tofu"
    max_new_tokens: int = Field(200, ge=1, description="of an answer, at most")


def _metrics(options: TofuOptions) -> tuple[Metric, ...]:
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
        *privacy.definitions(options),
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
        rows += [
            Metric(
                f"{name}_truth_ratio_{aggregator}",
                f"{title} truth ratio, {aggregator.replace('_', ' ')}",
                "lower" if forget or aggregator == "closer_to_1" else "higher",
                f"mean of {AGGREGATORS[aggregator]}",
                f"{OPEN_UNLEARNING}, aggregator {aggregator.replace('to_1', 'to_1_better')}",
            )
            for aggregator in _other_aggregators(name)
        ]
    rows.append(
        Metric(
            "forget_quality__tofu",
            "Forget quality (TOFU's code)",
            "higher",
            f"as forget_quality, of the first {ORIGINAL_ROWS} rows",
            f"{TOFU_CODE}, get_forget_quality",
        )
    )
    rows.append(
        Metric(
            "model_utility__tofu",
            "Model utility (TOFU's code)",
            "higher",
            f"as model_utility, of the first {ORIGINAL_ROWS} rows of each set, with the arithmetic mean over perturbed "
            f"answers in the truth ratio, and answers that end where prompt and answer are {ORIGINAL_LENGTH} tokens",
            f"{TOFU_CODE}, get_model_utility",
        )
    )
    rows += answers.METRICS
    return tuple(rows)


# Truth ratios of the rows of a set as one number; the first is the default of the forget set, the second of the others.
AGGREGATORS = {
    "closer_to_1": "min(R, 1/R): 1 where neither answer is preferred",
    "true_better": "max(0, 1 - R): 1 where the truth is preferred",
    "prob_mean": "c / (c + w), R = w / c: 0.5 where neither answer is preferred",
}


def _other_aggregators(name: str) -> list[str]:
    default = "closer_to_1" if name == "forget" else "true_better"
    return [aggregator for aggregator in AGGREGATORS if aggregator != default]


class Tofu:
    """Scores true, paraphrased and perturbed answers of four sets, and generates an answer to every question; where
    memorisation or membership is asked for, scores answers of the forget and the holdout set token by token."""

    options = TofuOptions

    def metrics(self, options: TofuOptions) -> tuple[Metric, ...]:
        return _metrics(options)

    def trade_offs(self, options: TofuOptions) -> tuple[tuple[str, str], ...]:
        return ("model_utility", "forget_quality"), ("model_utility", "forget_probability")

    def sets(self, options: TofuOptions) -> tuple[str, ...]:
        return (*SETS, HOLDOUT) if options.needs_holdout else tuple(SETS)

    def judged(self, options: TofuOptions) -> Mapping[Literal["forget", "retain"], str]:
        return {"forget": "forget", "retain": "retain"}

    def cost(self, options: TofuOptions, forget_rows: int) -> Cost:
        """A row has its answer and five perturbed ones; of the forget and the retain set, of which at most 400 rows are
        scored, a paraphrase too. Real authors and world facts are 217 rows. There are as many holdout rows as forget
        rows. A gradient takes as long as three scores."""
        scored = 7 * (forget_rows + 400) + 6 * 217
        if options.needs_holdout:
            scored += forget_rows
        if "gradnorm" in options.membership:
            scored += 2 * forget_rows * (1 + 3)
        return Cost(scored, forget_rows + 400 + 217, options.max_new_tokens)

    def requests(self, data: Path, options: TofuOptions, tokenizer: Tokenizer, vocabulary: int) -> Requests:
        return requests.requests_of(self.items(data, options, tokenizer), data, vocabulary)

    def items(self, data: Path, options: TofuOptions, tokenizer: Tokenizer) -> list[requests.Instance]:
        """All rows of ``data/evaluation/<set>.jsonl``. Every target, paraphrased answers included, follows the original
        question."""
        files = {name: Path(data) / "evaluation" / f"{name}.jsonl" for name in self.sets(options)}
        return [item for name, file in files.items() for item in _read(name, file, options, tokenizer)]

    def compute_metrics(
        self, examples: Sequence[Example], options: TofuOptions, retain_examples: Sequence[Example] | None = None
    ) -> dict[str, float]:
        """All metrics of ``metrics``, in its order; forget quality only where ``retain_examples`` are given.

        Raises ``DataError`` where an example lacks what they need, and where ``options.needs_retrain`` and
        ``retain_examples`` are not given.
        """
        if options.needs_retrain and retain_examples is None:
            raise DataError(f"no evaluation of retrain is given: {options.needs_retrain}")
        values = privacy.values_of(examples, options, retain_examples)
        for name in SETS:
            values |= _set_metrics(name, of_set(examples, name))
        values["model_utility"] = harmonic_mean([values[key] for key in UTILITY])
        values["model_utility__tofu"] = harmonic_mean(_original_utility(examples))
        if retain_examples is not None:
            with privacy.of_retrain():
                retrain = of_set(retain_examples, "forget")
                retrain_ratios, retrain_first = [_truth_ratio(e) for e in retrain], _original_ratios(retrain)
            forget = of_set(examples, "forget")
            values["forget_quality"] = ks_p_value([_truth_ratio(example) for example in forget], retrain_ratios)
            values["forget_quality__tofu"] = ks_p_value(_original_ratios(forget), retrain_first)
        values |= answers.counts(of_set(examples, "retain"))
        return {metric.key: values[metric.key] for metric in self.metrics(options) if metric.key in values}

    def collapse(self, examples: Sequence[Example], options: TofuOptions, metrics: Mapping[str, float]) -> list[str]:
        """Reasons: most answers to retain questions are empty or repeat themselves; model utility is 0.

        A model utility under 0.001, which published tables print as 0, counts as 0.
        """
        reasons = answers.collapse(metrics, len(of_set(examples, "retain")))
        if metrics["model_utility"] < NO_UTILITY:
            worst = min(UTILITY, key=lambda key: metrics[key])
            reasons.append(f"model utility is {metrics['model_utility']:.3g}: {worst} is {metrics[worst]:.3g}")
        return reasons


def _read(name: str, path: Path, options: TofuOptions, tokenizer: Tokenizer) -> list[requests.Instance]:
    from megatron_ext.inference.generation import GenerateRequest

    rows = read_rows(path)
    if not rows:
        raise DataError(f"{path}: no rows")
    attacked = name in ("forget", HOLDOUT)
    found = []
    for number, row in enumerate(rows, 1):
        missing = {"index", "question", "answer", "prompt_ids", "generation_prompt_ids", "targets"} - row.keys()
        missing |= {f"targets.{key}" for key in _needed(name) - row.get("targets", {}).keys()}
        if missing:
            raise DataError(f"{path}, line {number}: missing {', '.join(sorted(missing))}")
        prompt, answer, before = row["prompt_ids"], row["targets"]["answer"], row["generation_prompt_ids"]
        targets = {key: (prompt, ids) for key, ids in row["targets"].items()}
        empty = [key for key, (_, ids) in targets.items() if not ids]
        if empty or not prompt or not before:
            raise DataError(f"{path}, line {number}: a prompt or target is empty {empty}")
        texts = {"question": row["question"], "answer": row["answer"].strip()}
        if attacked and (options.memorisation or options.needs_holdout) and len(answer) < 2:
            raise DataError(f"{path}, line {number}: the answer has no token beside its end")
        if attacked and "zlib" in options.membership:
            texts["labelled"] = tokenizer.decode(answer)
        if attacked and "gradnorm" in options.membership:
            targets[UNENDED] = (prompt, answer[:-1])
        found.append(
            requests.Instance(
                name,
                row["index"],
                texts,
                targets,
                tokenwise=frozenset({"answer"} if options.tokenwise(name) else ()),
                gradients=frozenset({UNENDED} & targets.keys()),
                generate=None if name == HOLDOUT else GenerateRequest(before, options.max_new_tokens),
                cuts={} if name == HOLDOUT else {ORIGINAL_GENERATION: max(0, ORIGINAL_LENGTH - len(before))},
            )
        )
    return found


def _needed(name: str) -> set[str]:
    if name == HOLDOUT:
        return {"answer"}
    return {"answer", "perturbed_0"} | ({"paraphrased"} if name in PARAPHRASED else set())


def _perturbed(example: Example) -> list[float]:
    """Losses of all perturbed answers of an example, at least one."""
    count = max(1, sum(key.startswith("perturbed_") for key in example["scores"]))
    return [avg_loss(example, f"perturbed_{i}") for i in range(count)]


def _correct_loss(example: Example) -> float:
    """Loss of the answer that the perturbed ones are compared with."""
    return avg_loss(example, "paraphrased" if example["set"] in PARAPHRASED else "answer")


def _truth_ratio(example: Example) -> float:
    return truth_ratio(_correct_loss(example), _perturbed(example))


def _set_metrics(name: str, examples: Sequence[Example]) -> dict[str, float]:
    rouge = rouge_recall([example["answer"] for example in examples], [generation(example) for example in examples])
    ratios = [_truth_ratio(example) for example in examples]
    ratio = {
        "closer_to_1": mean([closer_to_1_better(value) for value in ratios]),
        "true_better": mean([true_better(value) for value in ratios]),
        "prob_mean": mean([prob_mean(_correct_loss(example), _perturbed(example)) for example in examples]),
    }
    others = _other_aggregators(name)
    (default,) = ratio.keys() - set(others)
    values = {
        "probability": mean([probability(avg_loss(example, "answer")) for example in examples]),
        "rouge": mean(rouge["rougeL"]),
        "rouge1": mean(rouge["rouge1"]),
        "truth_ratio": ratio[default],
        **{f"truth_ratio_{aggregator}": ratio[aggregator] for aggregator in others},
    }
    if name in NORMALISED:
        values["probability_normalised"] = mean(
            [normalised_probability(avg_loss(example, "answer"), _perturbed(example)) for example in examples]
        )
    return {f"{name}_{key}": value for key, value in values.items()}


def _original(examples: Sequence[Example]) -> list[Example]:
    """The examples that TOFU's own evaluation has."""
    found = [example for example in examples if example["index"] < ORIGINAL_ROWS]
    if not found:
        raise DataError(f"set {examples[0]['set']!r}: none of the first {ORIGINAL_ROWS} rows is among the examples")
    return found


def _original_ratios(examples: Sequence[Example]) -> list[float]:
    """Logarithms of TOFU's truth ratios: the test looks at their order alone, and they cannot overflow."""
    return [mean(_perturbed(example)) - _correct_loss(example) for example in _original(examples)]


def _original_utility(examples: Sequence[Example]) -> list[float]:
    """What TOFU's own code takes the harmonic mean of."""
    values = []
    for name in ("retain", *NORMALISED):
        own = _original(of_set(examples, name))
        answers = []
        for example in own:
            if not isinstance(example.get(ORIGINAL_GENERATION), str):
                raise DataError(f"{where(example)}: no {ORIGINAL_GENERATION}")
            answers.append(example[ORIGINAL_GENERATION])
        if name in NORMALISED:
            likely = [share(avg_loss(example, "answer"), _perturbed(example)) for example in own]
        else:
            likely = [probability(avg_loss(example, "answer")) for example in own]
        ratios = [arithmetic_truth_ratio(_correct_loss(example), _perturbed(example)) for example in own]
        rouge = rouge_recall([example["answer"] for example in own], answers)["rougeL"]
        values += [mean(likely), mean(rouge), mean([true_better(ratio) for ratio in ratios])]
    return values


FAMILY = Tofu()
