"""The catalogue of TOFU's metrics, and the sets that they are of; ``metrics.py`` computes them.

The definitions are open-unlearning's. Keys that end in ``__tofu`` are as TOFU's own code has them.
"""

from __future__ import annotations

import math
from dataclasses import replace

from pipeline.benchmarks import degenerate_answers, leaks, privacy
from pipeline.benchmarks.base import Evidence, Metric, of_request
from pipeline.benchmarks.privacy import OPEN_UNLEARNING
from pipeline.benchmarks.request_sets import REQUEST
from pipeline.benchmarks.tofu.options import TofuOptions

TOFU = "TOFU (arXiv 2401.06121)"
TOFU_CODE = "TOFU's own code (locuslab/tofu, utils.py and config/eval_everything.yaml)"
SETS = {"forget": "Forget", "retain": "Retain", "real_authors": "Real authors", "world_facts": "World facts"}
KEPT = ("retain", "real_authors", "world_facts")
PARAPHRASED = ("forget", "retain")  # sets whose truth ratio compares with a paraphrase of the answer
NORMALISED = ("real_authors", "world_facts")  # sets whose probability is the share among the answers of a row
ORIGINAL_ROWS = 300  # of each set, in TOFU's own evaluation
ORIGINAL_LENGTH = 200  # tokens of prompt and greedy answer together, there

WORDS = privacy.Words(
    unit="answer",
    sets="set",
    memorised="the forget set",
    predicted="all of the answer's n tokens after the first k are predicted",
    tokens="the answer's tokens",
)
MAIN = (
    Metric(
        "forget_quality",
        "Forget quality",
        "higher",
        "p-value of the two-sided Kolmogorov-Smirnov test between the forget truth ratios of model and retrain",
        f"{TOFU}, section 2.2.2; {OPEN_UNLEARNING}",
        headline=True,
        evidence="test",
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
        "mean of min(R, 1/R), R = geometric mean probability of the perturbed answers / that of the paraphrased answer",
        f"{OPEN_UNLEARNING}, aggregator closer_to_1_better",
        headline=True,
        evidence="likeness",
    ),
)
# Of each set: the sets that have the metric, and the metric of a set that is kept. Of the forget set lower is better.
OF_EACH_SET: tuple[tuple[tuple[str, ...], Metric], ...] = (
    (
        tuple(SETS),
        Metric(
            "{set}_probability",
            "{title} probability",
            "higher",
            "mean of exp(mean log-probability of the answer's tokens, end token included)",
            OPEN_UNLEARNING,
            headline=True,
        ),
    ),
    (
        NORMALISED,
        Metric(
            "{set}_probability_normalised",
            "{title} probability, normalised",
            "higher",
            "mean of P(answer) / (P(answer) + sum of P(perturbed answers)), each length-normalised",
            OPEN_UNLEARNING,
        ),
    ),
    (
        tuple(SETS),
        Metric(
            "{set}_rouge",
            "{title} ROUGE-L",
            "higher",
            "mean ROUGE-L recall of the greedy answer, Porter stemmer on",
            OPEN_UNLEARNING,
            headline=True,
        ),
    ),
    (
        tuple(SETS),
        Metric(
            "{set}_rouge1",
            "{title} ROUGE-1",
            "higher",
            "mean ROUGE-1 recall of the greedy answer, Porter stemmer on",
            OPEN_UNLEARNING,
        ),
    ),
    (
        KEPT,
        Metric(
            "{set}_truth_ratio",
            "{title} truth ratio",
            "higher",
            "mean of max(0, 1 - R), R = geometric mean probability of the perturbed answers / that of the {correct} "
            "answer",
            f"{OPEN_UNLEARNING}, aggregator true_better",
        ),
    ),
    (
        KEPT,
        Metric(
            "{set}_truth_ratio_closer_to_1",
            "{title} truth ratio, closer to 1",
            "lower",
            "mean of min(R, 1/R): 1 where neither answer is preferred",
            f"{OPEN_UNLEARNING}, aggregator closer_to_1_better",
        ),
    ),
    (
        ("forget",),
        Metric(
            "{set}_truth_ratio_true_better",
            "{title} truth ratio, true better",
            "higher",
            "mean of max(0, 1 - R): 1 where the truth is preferred",
            f"{OPEN_UNLEARNING}, aggregator true_better",
            ideal=math.nan,
        ),
    ),
    (
        tuple(SETS),
        Metric(
            "{set}_truth_ratio_prob_mean",
            "{title} truth ratio, prob mean",
            "higher",
            "mean of c / (c + w), R = w / c: 0.5 where neither answer is preferred",
            f"{OPEN_UNLEARNING}, aggregator prob_mean",
            ideal=0.5,
        ),
    ),
)
OF_REQUESTS = (
    *(metric for sets, metric in OF_EACH_SET if sets == tuple(SETS) and metric.headline),
    replace(MAIN[2], key="{set}_truth_ratio", title="{title} truth ratio"),
)
ORIGINAL = (
    Metric(
        "forget_quality__tofu",
        "Forget quality (TOFU's code)",
        "higher",
        f"as forget_quality, of the first {ORIGINAL_ROWS} rows",
        f"{TOFU_CODE}, get_forget_quality",
        evidence="test",
    ),
    Metric(
        "model_utility__tofu",
        "Model utility (TOFU's code)",
        "higher",
        f"as model_utility, of the first {ORIGINAL_ROWS} rows of each set, with the arithmetic mean over perturbed "
        f"answers in the truth ratio, and answers that end where prompt and answer are {ORIGINAL_LENGTH} tokens",
        f"{TOFU_CODE}, get_model_utility",
    ),
)


def has_paraphrase(name: str) -> bool:
    """Whether the truth ratio of a set compares with a paraphrase of the answer."""
    return name in PARAPHRASED or name.startswith(REQUEST)


def catalogue(options: TofuOptions) -> tuple[Metric, ...]:
    """Every metric that can be reported with these options, in the order of a table."""
    of_sets = [_of_set(name, metric) for name in SETS for sets, metric in OF_EACH_SET if name in sets]
    of_requests = [
        of_request(number, metric, correct="paraphrased")
        for number in range(2, options.requests + 1)
        for metric in OF_REQUESTS
    ]
    leaking = leaks.catalogue(options.leak, {"forget": SETS["forget"]})
    return (
        *MAIN,
        *privacy.catalogue(options, WORDS),
        *of_sets,
        *of_requests,
        *leaking,
        *ORIGINAL,
        *degenerate_answers.METRICS,
    )


def _of_set(name: str, metric: Metric) -> Metric:
    correct = "paraphrased" if name in PARAPHRASED else "true"
    filled = metric.filled(set=name, title=SETS[name], correct=correct)
    headline = metric.headline and name in ("forget", "retain")
    if name != "forget":
        return replace(filled, headline=headline)
    evidence: Evidence = "likeness" if "truth_ratio" in metric.key else "knowledge"
    return replace(filled, better="lower", headline=headline, evidence=evidence)
