"""Rows of questions with answers, as the prepare step writes them, and what a model is asked about one."""

from __future__ import annotations

from collections.abc import Mapping, Set
from typing import TYPE_CHECKING, Any

from pipeline.benchmarks.privacy import UNENDED, PrivacyOptions
from pipeline.benchmarks.requests import Instance
from pipeline.data.errors import DataError

if TYPE_CHECKING:
    from pipeline.data.tokenizer import Tokenizer


def instance_of(
    name: str,
    row: Mapping[str, Any],
    place: str,
    *,
    needed: Set[str],
    options: PrivacyOptions,
    tokenizer: Tokenizer,
    attacked: bool,
    tokenwise: bool,
    new_tokens: int | None,
    cuts: Mapping[str, int],
    leaks: bool = False,
) -> Instance:
    """What is asked about a row: its answers' log-probabilities, and an answer.

    Args:
        name: name of the evaluated set
        row: a record that ``pipeline.data.tokenise.Encoder.evaluation`` made
        place: what to call the row in a message
        needed: targets that it must have
        options: which memorisation and membership metrics are wanted
        tokenizer: tokenizer of the data
        attacked: whether attacks on membership read the set
        tokenwise: whether numbers of every token of the answer are wanted
        new_tokens: tokens of a generated answer at most; ``None``: none is generated
        cuts: as ``Instance.cuts``
        leaks: whether leak@k is measured on the set, where it is asked for

    Raises:
        DataError: the row lacks something, or an answer has no token beside its end where one is needed
    """
    from megatron_ext.inference.generation import GenerateRequest

    missing = {"index", "question", "answer", "prompt_ids", "targets"} - row.keys()
    missing |= {f"targets.{key}" for key in needed - row.get("targets", {}).keys()}
    if missing:
        raise DataError(f"{place}: missing {', '.join(sorted(missing))}")
    prompt, answer = row["prompt_ids"], row["targets"]["answer"]
    before = row.get("before", {})
    targets = {key: (before.get(key, prompt), ids) for key, ids in row["targets"].items()}
    empty = [key for key, (_, ids) in targets.items() if not ids]
    if empty or not prompt:
        raise DataError(f"{place}: a prompt or target is empty {empty}")
    texts = {"question": row["question"], "answer": row["answer"].strip()}
    if attacked and (options.memorisation or options.needs_holdout) and len(answer) < 2:
        raise DataError(f"{place}: the answer has no token beside its end")
    if attacked and "zlib" in options.membership:
        texts["labelled"] = tokenizer.decode(answer)
    if attacked and "gradnorm" in options.membership:
        targets[UNENDED] = (before.get("answer", prompt), answer[:-1])
    request = None if new_tokens is None else GenerateRequest(prompt, new_tokens)
    return Instance(
        name,
        row["index"],
        texts,
        targets,
        tokenwise=frozenset({"answer"} if tokenwise else ()),
        gradients=frozenset({UNENDED} & targets.keys()),
        generate=request,
        drawn=options.leak.drawn(request) if options.leak and leaks and request else (),
        cuts=cuts,
    )
