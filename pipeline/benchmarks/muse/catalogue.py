"""The catalogue of MUSE's metrics, and the sets that they are of; ``metrics.py`` computes them.

The definitions are open-unlearning's. Keys that end in ``__muse`` are as MUSE's own code has them.
"""

from __future__ import annotations

from dataclasses import replace

from pipeline.benchmarks import degenerate_answers, leaks, privacy
from pipeline.benchmarks.base import Metric, of_request
from pipeline.benchmarks.muse.options import MuseOptions
from pipeline.benchmarks.privacy import OPEN_UNLEARNING

MUSE = "MUSE (arXiv 2407.06460), section 4"
MUSE_CODE = "MUSE's own code (jaechan-repo/muse_bench, metrics)"
VERBMEM = "verbmem"
FORGOTTEN = "knowmem_forget"
KNOWMEM = {"knowmem_forget": "forget", "knowmem_retain": "retain"}
MEMBERS, OTHERS = PRIVLEAK_SETS = ("privleak_forget", "privleak_holdout")

# Placeholders: numbers of the options, and {set} and {title} of the two sets of KnowMem.
VERBMEM_METRICS = (
    Metric(
        "verbmem_rouge",
        "VerbMem",
        "lower",
        "mean ROUGE-L F1 of up to {verbmem_new_tokens} greedy tokens after the start of a forget text, "
        "against what follows there, Porter stemmer on",
        f"{MUSE}; {OPEN_UNLEARNING}",
        headline=True,
        evidence="knowledge",
    ),
    Metric(
        "verbmem_rouge__muse",
        "VerbMem, MUSE's code",
        "lower",
        "100 times the same without a stemmer, against the first {verbmem_new_tokens} tokens, start token "
        "counted, of what follows",
        MUSE_CODE,
        evidence="knowledge",
    ),
)
KNOWMEM_METRICS = (  # of the retain set; of the forget set lower is better
    Metric(
        "{set}_rouge",
        "KnowMem, {title}",
        "higher",
        "mean ROUGE-L F1 of the greedy answer, up to {knowmem_new_tokens} tokens, to a question after "
        "answered ones, Porter stemmer on",
        f"{MUSE}; {OPEN_UNLEARNING}",
        headline=True,
    ),
    Metric(
        "{set}_rouge__muse",
        "KnowMem, {title}, MUSE's code",
        "higher",
        "100 times the same without a stemmer",
        MUSE_CODE,
    ),
)
PRIVLEAK_OF_MUSE = Metric(
    "privleak__muse",
    "PrivLeak, MUSE's code",
    "zero",
    "the same over all tokens of a text",
    MUSE_CODE,
    evidence="likeness",
)
SHORTENED = Metric(
    "shortened_prompts",
    "Shortened prompts",
    None,
    "questions asked after fewer answered ones than there are, because the context holds no more",
    "this project",
)
CUT = Metric(
    "cut_texts",
    "Cut texts",
    None,
    "forget and holdout texts of which the model's context holds only a part",
    "this project",
)


def catalogue(options: MuseOptions) -> tuple[Metric, ...]:
    """Every metric that can be reported with these options, in the order of a table."""
    numbers = {
        "verbmem_new_tokens": str(options.verbmem_new_tokens),
        "knowmem_new_tokens": str(options.knowmem_new_tokens),
    }
    words = privacy.Words(
        unit="text",
        sets="texts",
        memorised="VerbMem's texts",
        predicted="all of the n tokens after the prompt, the last one left out, are predicted after the first k",
        tokens="those tokens",
        privleak_limit=f"; of a text the first {options.privleak_tokens} tokens, the last of them left out",
        membership_limit=f", each of {options.privleak_tokens} tokens at most",
    )
    requests = [metric for number in range(2, options.requests + 1) for metric in _of_request(number, options, words)]
    knowmem = [
        replace(filled, better="lower", evidence="knowledge") if name == "knowmem_forget" else filled
        for name, title in KNOWMEM.items()
        for filled in (metric.filled(set=name, title=title, **numbers) for metric in KNOWMEM_METRICS)
    ]
    return (
        *(metric.filled(**numbers) for metric in VERBMEM_METRICS),
        *knowmem,
        *leaks.catalogue(options.leak, {FORGOTTEN: "KnowMem"}),
        *privacy.privleak(options, words),
        *([PRIVLEAK_OF_MUSE] if options.privleak else []),
        *privacy.memorisation(options, words),
        *privacy.membership(options, words),
        *requests,
        *degenerate_answers.METRICS,
        *([SHORTENED] if options.shorten_few_shot else []),
        *([CUT] if options.needs_holdout else []),
    )


def _of_request(number: int, options: MuseOptions, words: privacy.Words) -> list[Metric]:
    """VerbMem and memorisation of passages of what a further request adds."""
    wanted = [
        VERBMEM_METRICS[0],
        *privacy.memorisation(options, replace(words, memorised=f"passages of request {number}")),
    ]
    named = [replace(metric, key=f"{{set}}_{metric.key}", title=f"{{title}} {metric.title}") for metric in wanted]
    return [of_request(number, metric, verbmem_new_tokens=str(options.verbmem_new_tokens)) for metric in named]
