"""The catalogue of ``custom``'s metrics; ``metrics.py`` computes them."""

from __future__ import annotations

from dataclasses import replace

from pipeline.benchmarks import degenerate_answers, leaks, privacy
from pipeline.benchmarks.base import Better, Evidence, Metric
from pipeline.benchmarks.custom.options import FORGOTTEN, Asked, CustomOptions
from pipeline.benchmarks.privacy import OPEN_UNLEARNING

TOFU = "TOFU (arXiv 2401.06121)"
MUSE = "MUSE (arXiv 2407.06460), section 4"
CARLINI = f"Carlini et al. 2021 (arXiv 2012.07805); {OPEN_UNLEARNING}"
TIRUMALA = f"Tirumala et al. 2022 (arXiv 2205.10770); {OPEN_UNLEARNING}"

FORGET_QUALITY = Metric(
    "forget_quality",
    "Forget quality",
    "higher",
    "p-value of the two-sided Kolmogorov-Smirnov test between the forget truth ratios of model and retrain",
    f"{TOFU}, section 2.2.2; {OPEN_UNLEARNING}",
    headline=True,
    evidence="test",
)
QUESTIONS = (
    Metric(
        "{set}_probability",
        "{title} probability",
        "higher",
        "mean of exp(mean log-probability of the answer's tokens, end token included)",
        OPEN_UNLEARNING,
        headline=True,
    ),
    Metric(
        "{set}_rouge",
        "{title} ROUGE-L",
        "higher",
        "mean ROUGE-L recall of the greedy answer, Porter stemmer on",
        OPEN_UNLEARNING,
        headline=True,
    ),
)
TEXTS = (
    Metric(
        "{set}_rouge",
        "{title} continuation",
        "higher",
        "mean ROUGE-L recall of up to {tokens} greedy tokens after the first half of a piece of text, against as many "
        "tokens of what follows there, Porter stemmer on",
        MUSE,
        headline=True,
    ),
)
PERPLEXITY = Metric(
    "{set}_perplexity",
    "{title} perplexity",
    "lower",
    "exp(negative log-probability per token) over all {scored} of the set",
    "Jelinek et al. 1977",
)
MEMORISATION = (
    Metric(
        "{set}_extraction_strength",
        "{title} extraction strength",
        "higher",
        "mean of 1 - k/n over the n {scored} of a row, the last one left out, for the least k such that all after the "
        "first k are predicted; at least 1/n",
        CARLINI,
    ),
    Metric(
        "{set}_exact_memorisation",
        "{title} exact memorisation",
        "higher",
        "mean of the share of the {scored} of a row, the last one left out, that are predicted",
        TIRUMALA,
    ),
)
TRUTH_RATIO = Metric(
    "{set}_truth_ratio",
    "{title} truth ratio",
    "higher",
    "mean of max(0, 1 - R), R = geometric mean probability of the wrong answers / that of the {correct} answer",
    f"{OPEN_UNLEARNING}, aggregator true_better",
)
FORGET_TRUTH_RATIO = Metric(
    "{set}_truth_ratio",
    "{title} truth ratio",
    "one",
    "mean of min(R, 1/R), R = geometric mean probability of the wrong answers / that of the {correct} answer",
    f"{OPEN_UNLEARNING}, aggregator closer_to_1_better",
    headline=True,
)
CLOZE = (
    Metric(
        "{set}_probability",
        "{title} probability",
        "higher",
        "mean of exp(mean log-probability of the tokens that fill a sentence's blank)",
        "this project",
    ),
    Metric(
        "{set}_accuracy",
        "{title} accuracy",
        "higher",
        "share of sentences whose greedy continuation begins with what fills the blank, but for case",
        "Petroni et al. 2019 (arXiv 1909.01066), for models that read from left to right",
    ),
)


def catalogue(options: CustomOptions) -> tuple[Metric, ...]:
    """Every metric that can be reported with these options, in the order of a table."""
    words = privacy.Words(
        unit="text" if options.attacked == ("forget_texts", "holdout_texts") else "answer",
        sets="set",
        memorised="the forget set",
        predicted="all of the n tokens after the first k are predicted",
        tokens="the tokens",
    )
    found = [metric for name, asked in options.asked.items() for metric in _of_set(name, asked, options)]
    forget = options.asked.get("forget")
    return (
        *([FORGET_QUALITY] if forget is not None and forget.perturbed else []),
        *found,
        *leaks.catalogue(options.leak, {name: name.replace("_", " ").capitalize() for name in options.leaking}),
        *privacy.privleak(options, words),
        *privacy.membership(options, words),
        *degenerate_answers.METRICS,
    )


def _of_set(name: str, asked: Asked, options: CustomOptions) -> list[Metric]:
    scored = "answer tokens" if asked.form == "questions" else "tokens of the second half"
    words = {
        "set": name,
        "title": name.replace("_", " ").capitalize(),
        "tokens": str(options.max_new_tokens),
        "correct": "paraphrased" if asked.paraphrased else "true",
    }
    if asked.form == "cloze":
        chosen: list[Metric] = [*CLOZE]
    else:
        chosen = [*(QUESTIONS if asked.form == "questions" else TEXTS)]
        if asked.part == "holdout":  # is scored, and never asked for an answer
            chosen = [metric for metric in chosen if not metric.key.endswith("_rouge")]
        if asked.perturbed:
            chosen.append(FORGET_TRUTH_RATIO if asked.part in FORGOTTEN else TRUTH_RATIO)
        chosen.append(replace(PERPLEXITY, headline=asked.part == "retain"))
        chosen += MEMORISATION if options.remembered(name) else ()
    perplexed = {**words, "scored": "answer tokens" if asked.form == "questions" else "tokens"}
    found = []
    for metric in chosen:
        filled = metric.filled(**(perplexed if metric.key == PERPLEXITY.key else {**words, "scored": scored}))
        headline = metric.headline and asked.part in ("forget", "retain", "request")
        evidence = _evidence(metric, asked)
        found.append(replace(filled, better=_better(metric, asked), headline=headline, evidence=evidence))
    return found


def _evidence(metric: Metric, asked: Asked) -> Evidence:
    """What a metric says of what should be forgotten, of the sets of later requests too."""
    if asked.part not in FORGOTTEN or metric.key == PERPLEXITY.key:
        return None
    return "likeness" if metric.key == TRUTH_RATIO.key else "knowledge"


def _better(metric: Metric, asked: Asked) -> Better:
    """Which way is better: what is to be forgotten should fall, and perplexity of it has no goal."""
    if metric.better == "one":
        return "one"
    if asked.part in ("holdout", "request"):
        return None
    if metric.key == PERPLEXITY.key:
        return None if asked.part == "forget" else "lower"
    return "lower" if asked.part == "forget" else "higher"
