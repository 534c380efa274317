"""A user's own data: what a model is asked, and when it counts as destroyed.

Questions are answered, texts are continued and scored token by token, and sentences with a blank are filled.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pipeline.benchmarks import degenerate_answers
from pipeline.benchmarks.base import Cost, Example, Metric, Requests, of_set
from pipeline.benchmarks.custom.catalogue import catalogue
from pipeline.benchmarks.custom.metrics import REST, compute, kept
from pipeline.benchmarks.custom.options import CustomOptions
from pipeline.benchmarks.privacy import UNENDED
from pipeline.benchmarks.questions import instance_of
from pipeline.benchmarks.requests import Instance, requests_of
from pipeline.data.errors import DataError
from pipeline.data.json_files import numbered_rows

if TYPE_CHECKING:
    from pipeline.data.tokenizer import Tokenizer

NO_ROUGE = 1e-3  # a ROUGE-L of the retain set below it is printed as 0 in a table
CLOZE_TOKENS = 4  # of a greedy continuation, more than fill the blank
PERTURBED = 5  # wrong answers of a row, for estimates
LEAST = 4  # tokens of a piece of text that can be asked about


class Custom:
    """Answers questions, continues texts, fills blanks, and scores what should follow."""

    options = CustomOptions

    def metrics(self, options: CustomOptions) -> tuple[Metric, ...]:
        return catalogue(options)

    def trade_offs(self, options: CustomOptions) -> tuple[tuple[str, str], ...]:
        keep = f"{kept(options)}_rouge"
        drop = [f"{name}_rouge" for name in ("forget", "forget_texts", "reworded") if name in options.asked]
        return tuple((keep, key) for key in drop)

    def sets(self, options: CustomOptions) -> tuple[str, ...]:
        return tuple(options.asked)

    def judged(self, options: CustomOptions) -> Mapping[Literal["forget", "retain"], str]:
        forget = next(name for name in ("forget", "forget_texts") if name in options.asked)
        return {"forget": forget, "retain": kept(options)}

    def to_forget(self, options: CustomOptions) -> frozenset[str]:
        return frozenset(name for name, asked in options.asked.items() if asked.part in ("forget", "request"))

    def cost(self, options: CustomOptions, forget_rows: int) -> Cost:
        """A row has its answer, and where there are any five wrong ones and a paraphrase; a piece of text is scored
        whole and from its middle on. A gradient takes as long as three scores."""
        scored = answers = 0
        for name, asked in options.asked.items():
            rows = options.pieces if asked.form == "texts" else asked.rows
            each = 2 if asked.form == "texts" else 1 + PERTURBED * asked.perturbed + asked.paraphrased
            each += 4 * ("gradnorm" in options.membership and name in (options.attacked or ()))
            scored += rows * each
            answers += rows * (asked.part != "holdout")
            answers += rows * options.leak.samples if options.leak and name in options.leaking else 0
        return Cost(scored, answers, options.max_new_tokens)

    def requests(self, data: Path, options: CustomOptions, tokenizer: Tokenizer, vocabulary: int) -> Requests:
        files = {name: Path(data) / "evaluation" / f"{name}.jsonl" for name in options.asked}
        instances = [one for name, file in files.items() for one in _read(name, file, options, tokenizer)]
        return requests_of(instances, data, vocabulary)

    def compute_metrics(
        self, examples: Sequence[Example], options: CustomOptions, retain_examples: Sequence[Example] | None = None
    ) -> dict[str, float]:
        if options.needs_retrain and retain_examples is None:
            raise DataError(f"no evaluation of retrain is given: {options.needs_retrain}")
        return compute(examples, options, retain_examples)

    def collapse(self, examples: Sequence[Example], options: CustomOptions, metrics: Mapping[str, float]) -> list[str]:
        """As ``Family.collapse``: most answers about what is kept are empty or repeat themselves, or none is right."""
        name = kept(options)
        reasons = degenerate_answers.collapse(metrics, len(of_set(examples, name)))
        if options.asked[name].form == "questions" and metrics[f"{name}_rouge"] < NO_ROUGE:
            reasons.append(f"ROUGE-L of the retain set is {metrics[f'{name}_rouge']:.3g}")
        return reasons


def _read(name: str, path: Path, options: CustomOptions, tokenizer: Tokenizer) -> list[Instance]:
    """The instances of a set's file; raises ``DataError`` that names a line."""
    form, rows = options.asked[name].form, list(numbered_rows(path))
    if form == "texts":
        rows = [(place, row) for place, row in rows if len(row.get("ids", ())) >= LEAST]
        step = max(1.0, len(rows) / options.pieces)
        rows = [rows[int(i * step)] for i in range(min(len(rows), options.pieces))]
    if not rows:
        raise DataError(f"{path}: no rows" + (f" of at least {LEAST} tokens" if form == "texts" else ""))
    if form == "texts":
        return [_text(name, row, options, tokenizer) for _, row in rows]
    return [_question(name, row, place, options, tokenizer) for place, row in rows]


def _question(name: str, row: Mapping[str, Any], place: str, options: CustomOptions, tokenizer: Tokenizer) -> Instance:
    asked = options.asked[name]
    new_tokens: int | None = options.max_new_tokens
    if asked.form == "cloze":
        new_tokens = len(row.get("targets", {}).get("answer", ())) + CLOZE_TOKENS
    elif asked.part == "holdout":
        new_tokens = None
    return instance_of(
        name,
        row,
        place,
        needed={"answer"} | ({"perturbed_0"} if asked.perturbed else set()),
        options=options,
        tokenizer=tokenizer,
        attacked=name in (options.attacked or ()),
        tokenwise=options.scored_by_token(name),
        new_tokens=new_tokens,
        cuts={},
        leaks=name in options.leaking,
    )


def _text(name: str, row: Mapping[str, Any], options: CustomOptions, tokenizer: Tokenizer) -> Instance:
    """A piece of text: all of it is scored, and its second half is to be continued."""
    from megatron_ext.inference.generation import GenerateRequest

    ids, given = row["ids"], row["given"]
    middle = max(given, len(ids) // 2)
    start, rest = ids[:middle], ids[middle:]
    new_tokens = min(options.max_new_tokens, len(rest))
    targets = {"answer": (ids[:given], ids[given:]), REST: (start, rest)}
    texts = {
        "question": tokenizer.decode(start),
        "answer": tokenizer.decode(rest[:new_tokens]).strip(),
        "document": row["document"],
    }
    attacked = name in (options.attacked or ())
    if attacked and "zlib" in options.membership:
        texts["labelled"] = tokenizer.decode(ids[given:])
    if attacked and "gradnorm" in options.membership:
        targets[UNENDED] = (ids[:given], ids[given:-1])
    return Instance(
        name,
        row["index"],
        texts,
        targets,
        tokenwise=frozenset({"answer", REST} if options.scored_by_token(name) else ()),
        gradients=frozenset({UNENDED} & targets.keys()),
        generate=None if options.asked[name].part == "holdout" else GenerateRequest(start, new_tokens),
    )


FAMILY = Custom()
