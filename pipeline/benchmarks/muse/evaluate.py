"""MUSE (Shi et al. 2024, arXiv 2407.06460): verbatim and knowledge memorisation, utility and privacy leakage.

Metrics as open-unlearning defines them; those of MUSE's own code have ``__muse`` in their names.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from pipeline.benchmarks import degenerate_answers, requests
from pipeline.benchmarks.base import (
    LM,
    Cost,
    Example,
    Metric,
    Requests,
    generation,
    of_set,
    raw_score,
    tokenwise,
    where,
)
from pipeline.benchmarks.muse.data import prompt
from pipeline.benchmarks.privacy import (
    ATTACKS,
    OPEN_UNLEARNING,
    Attack,
    LeakOptions,
    Scored,
    auc_of,
    gradient_norm,
    labelled,
    less_retrain,
    of_retrain,
)
from pipeline.data.errors import DataError
from pipeline.data.json_files import read_rows
from pipeline.metrics.aggregate import mean
from pipeline.metrics.membership import lowest, min_k, min_k_plus_plus, priv_leak, zlib_ratio
from pipeline.metrics.memorisation import exact_memorisation, extraction_strength
from pipeline.metrics.text import rouge_f1

if TYPE_CHECKING:
    from pipeline.data.tokenizer import Tokenizer

MUSE = "MUSE (arXiv 2407.06460), section 4"
MUSE_CODE = "MUSE's own code (jaechan-repo/muse_bench, metrics)"
STOPS = ("\n\n", "\nQuestion", "Question:")
KNOWLEDGE = {"knowmem_forget": "Forget", "knowmem_retain": "Retain"}
SETS = MEMBERS, OTHERS = "privleak_forget", "privleak_holdout"
SHARE = 0.4  # of a text's tokens, in Min-K%
NO_UTILITY = 1e-3
# Targets of examples: the text after a prompt, a whole text, and a whole text without its last token.
REST, TEXT, UNENDED = "gt", "text", "text_without_last"
ORIGINAL = "gt__muse"  # in an example: the continuation as MUSE's code compares with it


class MuseOptions(LeakOptions):
    """What is asked of a model, and how long its answers may be; by default as in MUSE and open-unlearning."""

    family: Literal["muse"] = "muse"
    verbmem_new_tokens: int = Field(128, ge=1, description="of a continuation, at most")
    knowmem_new_tokens: int = Field(32, ge=1, description="of an answer, at most")
    shorten_few_shot: bool = Field(
        False, description="leave out answered questions, first ones first, where a prompt is too long for the context"
    )
    memorisation: bool = Field(True, description="extraction strength and exact memorisation of the continuations")
    privleak: bool = Field(True, description="PrivLeak, from Min-40% and retrain's evaluation")
    privleak_tokens: int = Field(2048, ge=2, description="of a text, at most; the model's context may hold fewer")


def _metrics(options: MuseOptions) -> list[Metric]:
    rows = [
        Metric(
            "verbmem_rouge",
            "VerbMem",
            "lower",
            f"mean ROUGE-L F1 of up to {options.verbmem_new_tokens} greedy tokens after the start of a forget text, "
            "against what follows there, Porter stemmer on",
            f"{MUSE}; {OPEN_UNLEARNING}",
            headline=True,
        ),
        Metric(
            "verbmem_rouge__muse",
            "VerbMem, MUSE's code",
            "lower",
            f"100 times the same without a stemmer, against the first {options.verbmem_new_tokens} tokens, start token "
            "counted, of what follows",
            MUSE_CODE,
        ),
    ]
    for name, title in KNOWLEDGE.items():
        better = "lower" if name == "knowmem_forget" else "higher"
        rows += [
            Metric(
                f"{name}_rouge",
                f"KnowMem, {title.lower()}",
                better,
                f"mean ROUGE-L F1 of the greedy answer, up to {options.knowmem_new_tokens} tokens, to a question after "
                "answered ones, Porter stemmer on",
                f"{MUSE}; {OPEN_UNLEARNING}",
                headline=True,
            ),
            Metric(
                f"{name}_rouge__muse",
                f"KnowMem, {title.lower()}, MUSE's code",
                better,
                "100 times the same without a stemmer",
                MUSE_CODE,
            ),
        ]
    if options.privleak:
        rows += [
            Metric(
                "privleak",
                "PrivLeak",
                "zero",
                "100 (a - r) / (r + 1e-10), a = 1 - AUC of Min-40% between forget and holdout texts, r = retrain's a; "
                f"of a text the first {options.privleak_tokens} tokens, the last of them left out",
                f"{MUSE}; {OPEN_UNLEARNING}",
                headline=True,
            ),
            Metric(
                "privleak__muse",
                "PrivLeak, MUSE's code",
                "zero",
                "the same over all tokens of a text",
                MUSE_CODE,
            ),
        ]
    if options.memorisation:
        rows += [
            Metric(
                "extraction_strength",
                "Extraction strength",
                "lower",
                "mean over VerbMem's texts of 1 - k/n, for the least k such that all of the n tokens after the prompt, "
                "the last one left out, are predicted after the first k; at least 1/n",
                f"Carlini et al. 2021 (arXiv 2012.07805); {OPEN_UNLEARNING}",
            ),
            Metric(
                "exact_memorisation",
                "Exact memorisation",
                "lower",
                "mean over VerbMem's texts of the share of those tokens that are predicted",
                f"Tirumala et al. 2022 (arXiv 2205.10770); {OPEN_UNLEARNING}",
            ),
        ]
    for attack in options.membership:
        title, score, paper = ATTACKS[attack]
        of_text = score.replace("answer", "text")
        rows.append(
            Metric(
                f"mia_{attack}",
                f"Membership AUC, {title}",
                None,
                f"probability that {of_text} is higher of a holdout text than of a forget text, "
                f"each of {options.privleak_tokens} tokens at most; 1: forget looks memorised",
                f"{paper}; {OPEN_UNLEARNING}",
            )
        )
    rows += degenerate_answers.METRICS
    if options.shorten_few_shot:
        rows.append(
            Metric(
                "shortened_prompts",
                "Shortened prompts",
                None,
                "questions asked after fewer answered ones than there are, because the context holds no more",
                "this project",
            )
        )
    if options.needs_holdout:
        rows.append(
            Metric(
                "cut_texts",
                "Cut texts",
                None,
                "forget and holdout texts of which the model's context holds only a part",
                "this project",
            )
        )
    return rows


class Muse:
    """Continues the starts of forget texts, answers questions after answered ones, and scores texts token by token."""

    options = MuseOptions

    def metrics(self, options: MuseOptions) -> tuple[Metric, ...]:
        return tuple(_metrics(options))

    def trade_offs(self, options: MuseOptions) -> tuple[tuple[str, str], ...]:
        return ("knowmem_retain_rouge", "knowmem_forget_rouge"), ("knowmem_retain_rouge", "verbmem_rouge")

    def sets(self, options: MuseOptions) -> tuple[str, ...]:
        return ("verbmem", *KNOWLEDGE, *((MEMBERS, OTHERS) if options.needs_holdout else ()))

    def judged(self, options: MuseOptions) -> Mapping[Literal["forget", "retain"], str]:
        return {"forget": "knowmem_forget", "retain": "knowmem_retain"}

    def cost(self, options: MuseOptions, forget_rows: int) -> Cost:
        """MUSE has 100 rows of each kind; a smaller benchmark fewer. A gradient takes as long as three scores."""
        rows = min(100, forget_rows)
        scored = rows * options.memorisation + 2 * rows * options.needs_holdout
        if "gradnorm" in options.membership:
            scored += 2 * rows * (1 + 3)
        return Cost(scored, 3 * rows, max(options.verbmem_new_tokens, options.knowmem_new_tokens))

    def requests(self, data: Path, options: MuseOptions, tokenizer: Tokenizer, vocabulary: int) -> Requests:
        files = {name: Path(data) / "evaluation" / f"{name}.jsonl" for name in self.sets(options)}
        rows = {name: _rows(name, file) for name, file in files.items()}

        def ask(model: LM) -> list[dict[str, Any]]:
            wanted = [
                _item(name, row, f"{files[name]}, line {number}", options, tokenizer, model.context)
                for name, some in rows.items()
                for number, row in enumerate(some, 1)
            ]
            examples = requests.requests_of(wanted, Path(data), vocabulary)(model)
            return [_without_unused(example, options) for example in examples]

        return ask

    def compute_metrics(
        self, examples: Sequence[Example], options: MuseOptions, retain_examples: Sequence[Example] | None = None
    ) -> dict[str, float]:
        """All metrics of ``metrics``, in its order.

        Raises ``DataError`` where an example lacks what they need, and where ``options.needs_retrain`` and
        ``retain_examples`` are not given.
        """
        if options.needs_retrain and retain_examples is None:
            raise DataError(f"no evaluation of retrain is given: {options.needs_retrain}")
        verbatim = of_set(examples, "verbmem")
        values: dict[str, float] = {
            "verbmem_rouge": _rouge(verbatim, REST, stemmer=True),
            "verbmem_rouge__muse": 100 * _rouge(verbatim, ORIGINAL, stemmer=False),
        }
        for name in KNOWLEDGE:
            asked = of_set(examples, name)
            values[f"{name}_rouge"] = _rouge(asked, "answer", stemmer=True)
            values[f"{name}_rouge__muse"] = 100 * _rouge(asked, "answer", stemmer=False)
        if options.memorisation:
            correct = [tokenwise(example, REST, "correct")[:-1] for example in verbatim]
            values["extraction_strength"] = mean([extraction_strength(row) for row in correct])
            values["exact_memorisation"] = mean([exact_memorisation(row) or 0.0 for row in correct if row])
        if options.privleak:
            for key, score in (("privleak", _min_k(options)), ("privleak__muse", _min_k_of_all)):
                reference = options.privleak_retrain_auc
                if reference is None:
                    with of_retrain():
                        reference = auc_of(retain_examples or [], SETS, score)
                values[key] = priv_leak(auc_of(examples, SETS, score), reference)
        for attack in options.membership:
            values[f"mia_{attack}"] = auc_of(examples, SETS, _attack(attack, options, retain_examples))
        values |= degenerate_answers.counts(of_set(examples, "knowmem_retain"))
        if options.shorten_few_shot:
            every = [example for name in KNOWLEDGE for example in of_set(examples, name)]
            values["shortened_prompts"] = sum(example["shots"] < example["shots_known"] for example in every)
        if options.needs_holdout:
            texts = [example for name in (MEMBERS, OTHERS) for example in of_set(examples, name)]
            values["cut_texts"] = sum(raw_score(example, TEXT)["tokens"] < example["text_tokens"] for example in texts)
        return {metric.key: values[metric.key] for metric in self.metrics(options)}

    def collapse(self, examples: Sequence[Example], options: MuseOptions, metrics: Mapping[str, float]) -> list[str]:
        """Reasons: most answers to retain questions are empty or repeat themselves; none has a word of the true one.

        A retain KnowMem under 0.001, which a table prints as 0, counts as 0.
        """
        reasons = degenerate_answers.collapse(metrics, len(of_set(examples, "knowmem_retain")))
        if metrics["knowmem_retain_rouge"] < NO_UTILITY:
            reasons.append(f"KnowMem of the retain set is {metrics['knowmem_retain_rouge']:.3g}")
        return reasons


def _rows(name: str, path: Path) -> list[dict[str, Any]]:
    needed = {"verbmem": ("prompt", "gt"), MEMBERS: ("text",), OTHERS: ("text",)}.get(name, ("question", "answer"))
    kinds = {"index": int, **dict.fromkeys(needed, str), **({"shots": list} if name in KNOWLEDGE else {})}
    rows = read_rows(path)
    if not rows:
        raise DataError(f"{path}: no rows")
    for number, row in enumerate(rows, 1):
        for key, kind in kinds.items():
            if not isinstance(row.get(key), kind):
                raise DataError(
                    f"{path}, line {number}: field {key!r} must be {_KINDS[kind]}, got {row.get(key)!r:.60}"
                )
    return rows


_KINDS = {int: "a whole number", str: "a text", list: "a list"}


def _item(
    name: str, row: Mapping[str, Any], place: str, options: MuseOptions, tokenizer: Tokenizer, context: int
) -> requests.Instance:
    """What is asked about a row; raises ``DataError`` where a prompt, with what is to follow it, is too long."""
    if name == "verbmem":
        return _verbatim(row, place, options, tokenizer, context)
    if name in KNOWLEDGE:
        return _knowledge(name, row, place, options, tokenizer, context)
    return _member(name, row, place, options, tokenizer, context)


def _verbatim(
    row: Mapping[str, Any], place: str, options: MuseOptions, tokenizer: Tokenizer, context: int
) -> requests.Instance:
    from megatron_ext.inference.generation import GenerateRequest

    start = tokenizer.encode(row["prompt"], special=True)
    _fits(len(start), options.verbmem_new_tokens, context, place)
    short = tokenizer.encode(row["gt"], special=True)[: options.verbmem_new_tokens]
    targets = {}
    if options.memorisation:
        whole = tokenizer.encode(f"{row['prompt']} {row['gt']}", special=True)
        rest = whole[len(start) :]
        if len(rest) < 2:
            raise DataError(f"{place}: what follows the prompt has fewer than 2 tokens")
        _fits(len(start), len(rest), context, place)
        targets[REST] = (whole[: len(start)], rest)
    return requests.Instance(
        "verbmem",
        row["index"],
        {"prompt": row["prompt"], REST: row["gt"].strip(), ORIGINAL: tokenizer.decode(short)},
        targets,
        tokenwise=frozenset(targets),
        generate=GenerateRequest(start, options.verbmem_new_tokens),
    )


def _knowledge(
    name: str, row: Mapping[str, Any], place: str, options: MuseOptions, tokenizer: Tokenizer, context: int
) -> requests.Instance:
    from megatron_ext.inference.generation import GenerateRequest

    shots = list(row["shots"])
    while True:
        ids = tokenizer.encode(prompt(shots, row["question"]), special=True)
        if not (options.shorten_few_shot and shots and len(ids) + options.knowmem_new_tokens > context):
            break
        del shots[0]
    _fits(len(ids), options.knowmem_new_tokens, context, place, " (options.shorten_few_shot leaves out answered ones)")
    return requests.Instance(
        name,
        row["index"],
        {
            "question": row["question"],
            "answer": row["answer"].strip(),
            "shots": len(shots),
            "shots_known": len(row["shots"]),
        },
        {},
        generate=GenerateRequest(ids, options.knowmem_new_tokens, STOPS),
    )


def _member(
    name: str, row: Mapping[str, Any], place: str, options: MuseOptions, tokenizer: Tokenizer, context: int
) -> requests.Instance:
    """A text whose every token after the first id is scored: after the start token, where this tokenizer has one."""
    start, *every = tokenizer.encode(row["text"], special=True)
    tokens = every[: context - 1]
    if len(tokens) < 2:
        raise DataError(f"{place}: the text has fewer than 2 tokens that can be scored")
    first = tokens[: options.privleak_tokens]
    targets = {TEXT: ([start], tokens)}
    if "gradnorm" in options.membership:
        targets[UNENDED] = ([start], first[:-1])
    texts: dict[str, Any] = {"text_tokens": len(every)}
    if "zlib" in options.membership:
        texts["labelled"] = tokenizer.decode(first)
    return requests.Instance(
        name,
        row["index"],
        texts,
        targets,
        tokenwise=frozenset({TEXT}),
        gradients=frozenset({UNENDED} & targets.keys()),
    )


def _fits(length: int, more: int, context: int, place: str, hint: str = "") -> None:
    if length + more > context:
        raise DataError(
            f"{place}: a prompt of {length} tokens and {more} more, but the model's context is {context}{hint}"
        )


def _without_unused(example: dict[str, Any], options: MuseOptions) -> dict[str, Any]:
    """Without numbers of single tokens that no metric of these options reads: whole texts have thousands."""
    unused = {REST: {"log_probs", "means", "variances"}, TEXT: {"correct"}}
    if "min_k_plus_plus" not in options.membership:
        unused[TEXT] |= {"means", "variances"}
    for target, score in example["scores"].items():
        for key in unused.get(target, ()):
            score.pop(key, None)
    return example


def _rouge(examples: Sequence[Example], key: str, stemmer: bool) -> float:
    texts = []
    for example in examples:
        if not isinstance(example.get(key), str):
            raise DataError(f"{where(example)}: no {key!r}")
        texts.append(example[key])
    return mean(rouge_f1(texts, [generation(example) for example in examples], stemmer))


def _first(example: Example, options: MuseOptions, key: str) -> list[float]:
    """A number of each of a text's tokens that open-unlearning reads: the first ``privleak_tokens``."""
    return tokenwise(example, TEXT, key)[: options.privleak_tokens]


def _without_last(example: Example, options: MuseOptions, key: str) -> list[float]:
    """As ``_first``, without the last of the text's tokens that are read: open-unlearning drops it."""
    read = min(example["text_tokens"], options.privleak_tokens)
    return tokenwise(example, TEXT, key)[: read - 1]


def _min_k(options: MuseOptions) -> Scored:
    return lambda example: min_k(_without_last(example, options, "log_probs"), SHARE)


def _min_k_of_all(example: Example) -> float:
    """MUSE's code: over all tokens, and over none where 40 % of them are less than one, which is an error here."""
    worst = lowest(tokenwise(example, TEXT, "log_probs"), SHARE, at_least_one=False)
    if not worst:
        raise DataError(f"{where(example)}: too few tokens for Min-40%")
    return -math.fsum(worst) / len(worst)


def _loss(example: Example, options: MuseOptions) -> float:
    log_probs = _first(example, options, "log_probs")
    return -math.fsum(log_probs) / len(log_probs)


def _attack(attack: Attack, options: MuseOptions, retrain: Sequence[Example] | None) -> Scored:
    """The attack's score of a text: lower where it looks like one that was trained on."""
    if attack == "loss":
        return lambda example: _loss(example, options)
    if attack == "zlib":
        return lambda example: zlib_ratio(_loss(example, options), labelled(example))
    if attack == "reference":
        return less_retrain(lambda example: _loss(example, options), retrain)
    if attack == "gradnorm":
        return lambda example: gradient_norm(example, UNENDED)
    if attack == "min_k":
        return _min_k(options)
    keys = ("log_probs", "means", "variances")
    return lambda example: min_k_plus_plus(*(_without_last(example, options, key) for key in keys), SHARE)


FAMILY = Muse()
