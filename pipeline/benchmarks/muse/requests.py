"""What a model is asked on MUSE: rows of the prepared folder as instances, token by token."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.benchmarks.muse.catalogue import FORGOTTEN, KNOWMEM, MEMBERS, OTHERS, VERBMEM
from pipeline.benchmarks.muse.metrics import CONTINUATION_OF_MUSE, REST, TEXT, UNENDED
from pipeline.benchmarks.muse.options import MuseOptions
from pipeline.benchmarks.muse.prompt import prompt
from pipeline.benchmarks.request_sets import REQUEST
from pipeline.benchmarks.requests import Instance
from pipeline.data.errors import DataError
from pipeline.data.json_files import read_rows

if TYPE_CHECKING:
    from pipeline.data.tokenizer import Tokenizer

STOPS = ("\n\n", "\nQuestion", "Question:")  # an answer to a knowledge prompt ends before the first of them


def read(name: str, path: Path) -> list[dict[str, Any]]:
    asked = VERBMEM if name.startswith(REQUEST) else name
    needed = {VERBMEM: ("prompt", "gt"), MEMBERS: ("text",), OTHERS: ("text",)}.get(asked, ("question", "answer"))
    kinds = {"index": int, **dict.fromkeys(needed, str), **({"shots": list} if name in KNOWMEM else {})}
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


def instance_of(
    name: str, row: Mapping[str, Any], place: str, options: MuseOptions, tokenizer: Tokenizer, context: int
) -> Instance:
    """What is asked about a row; raises ``DataError`` where a prompt, with what is to follow it, is too long."""
    if name == VERBMEM or name.startswith(REQUEST):
        return _verbatim(name, row, place, options, tokenizer, context)
    if name in KNOWMEM:
        return _knowledge(name, row, place, options, tokenizer, context)
    return _member(name, row, place, options, tokenizer, context)


def _verbatim(
    name: str, row: Mapping[str, Any], place: str, options: MuseOptions, tokenizer: Tokenizer, context: int
) -> Instance:
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
    return Instance(
        name,
        row["index"],
        {"prompt": row["prompt"], REST: row["gt"].strip(), CONTINUATION_OF_MUSE: tokenizer.decode(short)},
        targets,
        tokenwise=frozenset(targets),
        generate=GenerateRequest(start, options.verbmem_new_tokens),
    )


def _knowledge(
    name: str, row: Mapping[str, Any], place: str, options: MuseOptions, tokenizer: Tokenizer, context: int
) -> Instance:
    from megatron_ext.inference.generation import GenerateRequest

    shots = list(row["shots"])
    while True:
        ids = tokenizer.encode(prompt(shots, row["question"]), special=True)
        if not (options.shorten_few_shot and shots and len(ids) + options.knowmem_new_tokens > context):
            break
        del shots[0]
    _fits(len(ids), options.knowmem_new_tokens, context, place, " (options.shorten_few_shot leaves out answered ones)")
    request = GenerateRequest(ids, options.knowmem_new_tokens, STOPS)
    return Instance(
        name,
        row["index"],
        {
            "question": row["question"],
            "answer": row["answer"].strip(),
            "shots": len(shots),
            "shots_known": len(row["shots"]),
        },
        {},
        generate=request,
        drawn=options.leak.drawn(request) if options.leak and name == FORGOTTEN else (),
    )


def _member(
    name: str, row: Mapping[str, Any], place: str, options: MuseOptions, tokenizer: Tokenizer, context: int
) -> Instance:
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
    return Instance(
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


def without_unused(example: dict[str, Any], options: MuseOptions) -> dict[str, Any]:
    """Without numbers of single tokens that no metric of these options reads: whole texts have thousands."""
    unused = {REST: {"log_probs", "means", "variances"}, TEXT: {"correct"}}
    if "min_k_plus_plus" not in options.membership:
        unused[TEXT] |= {"means", "variances"}
    for target, score in example["scores"].items():
        for key in unused.get(target, ()):
            score.pop(key, None)
    return example
