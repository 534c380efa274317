"""A model's own answers to general prompts: ``python -m pipeline.steps.own_answers SPEC.yaml``, on every rank.

The specification is a ``pipeline.specs.OwnAnswersSpec``. Rank 0 writes into its ``output``: ``answers.jsonl``, a line
with ``question`` and ``answer`` each, which preparing reads as it reads a user's file, and ``summary.json``.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from megatron_ext.atomic_files import write_text
from megatron_ext.specs import read
from megatron_ext.summary import Clock
from pipeline.benchmarks.megatron_lm import OpenEngine, megatron_engine
from pipeline.data import general_prompts
from pipeline.data.errors import DataError
from pipeline.data.qa_rows import Row
from pipeline.data.templates import Template
from pipeline.data.tokenise import Encoder
from pipeline.data.tokenizer import Tokenizer
from pipeline.specs import OwnAnswersSpec

if TYPE_CHECKING:
    from megatron_ext.inference.generation import GenerateRequest

FILE = "answers.jsonl"


def answer(spec: OwnAnswersSpec, clock: Clock | None = None, open_engine: OpenEngine = megatron_engine) -> int | None:
    """Sample the answers and write them on rank 0.

    An answer that is empty, or that is too long for the data with its prompt, is left out and counted.

    Returns:
        How many answers were written, or ``None`` on other ranks.

    Raises:
        DataError: No answer is left, or a prompt leaves no room for one.
    """
    clock = clock or Clock()
    tokenizer = Tokenizer.load(spec.checkpoint)
    encoder = Encoder(tokenizer, Template.of(spec.template), spec.max_length, "drop")
    tokenizer.ends_with(spec.checkpoint, encoder.template)
    prompts = general_prompts.read(spec)
    requests = _requests(spec, encoder, prompts)
    budgets = spec.token_budget, spec.token_budget
    with open_engine(spec.checkpoint, spec.runtime, tokenizer, budgets, None) as engine:
        clock.mark("startup")
        found = engine.generate(requests)
        clock.mark("work")
        if engine.rank:
            return None
    rows = [
        Row(prompt, tokenizer.decode(ids).strip()) for (_, prompt), ids in zip(_each(spec, prompts), found, strict=True)
    ]
    records, dropped = encoder.evaluation(rows, "own answers")
    if not records:
        raise DataError(f"{spec.checkpoint}: all of its {dropped} answers are empty or too long: give a set to keep")
    lines = ({key: record[key] for key in ("question", "answer")} for record in records)
    write_text(spec.output / FILE, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
    cut = sum(len(ids) == request.max_new_tokens for ids, request in zip(found, requests, strict=True))
    # A cut answer ends with the end token all the same, as the data's other answers do.
    counts = ((cut, f"cut at {spec.max_new_tokens} tokens or where data.max_length is reached"), (dropped, "dropped"))
    flags = [f"{number} of {len(found)} own answers {what}" for number, what in counts if number]
    for flag in flags:
        print(f"own_answers: warning: {flag}", file=sys.stderr)
    clock.mark("write")
    clock.write(spec.output, flags, rows=len(records), dropped=dropped, cut=cut, tokens=sum(map(len, found)))
    return len(records)


def _each(spec: OwnAnswersSpec, prompts: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    return [one for one in prompts for _ in range(spec.per_row)]


def _requests(spec: OwnAnswersSpec, encoder: Encoder, prompts: Sequence[tuple[str, str]]) -> list[GenerateRequest]:
    from megatron_ext.inference.generation import GenerateRequest, samples
    from megatron_ext.inference.sampling import Sampling

    way = Sampling(spec.temperature, spec.top_p, spec.top_k, spec.seed)
    texts = [encoder.template.prompt(prompt) for _, prompt in prompts]
    requests = []
    for (place, _), ids in zip(prompts, encoder.tokenizer.encode_batch(texts, encoder.template.adds_bos), strict=True):
        room = spec.max_length - len(ids) - 1
        if room < 1:
            raise DataError(
                f"{place}: {len(ids)} tokens leave no room for an answer below max_length {spec.max_length}"
            )
        request = GenerateRequest(ids, min(spec.max_new_tokens, room), sampling=way)
        requests += samples(request, spec.per_row)
    return requests


def main(argv: Sequence[str] | None = None) -> None:
    """Run the program with the arguments ``argv``, by default those of the command line."""
    clock = Clock()
    parser = argparse.ArgumentParser(
        prog="python -m pipeline.steps.own_answers", description="Sample a model's own answers to general prompts."
    )
    parser.add_argument("spec", type=Path, help="YAML file with an own_answers specification")
    try:
        rows = answer(read(parser.parse_args(argv).spec, OwnAnswersSpec), clock)
    except DataError as error:
        raise SystemExit(f"own_answers: error: {error}") from error
    if rows is not None:
        print(f"own_answers: {rows} answers to general prompts", file=sys.stderr)


if __name__ == "__main__":
    main()
