"""Have a language model judge a model's answers: ``python -m pipeline.steps.judge SPEC.yaml`` (a ``JudgeSpec``).

Reads ``examples.jsonl`` of a finished evaluation and asks the endpoint of ``spec.settings`` the questions of
``pipeline.judging.rubric``. Writes ``judgements.jsonl``, one line for each example and question, ``summary.json``, and
last ``judgement.json``, whose metrics are computed from these lines alone. It may need the internet, and runs where
Snakemake does.

An endpoint that cannot be reached, is slow or answers nonsense is no error: its failures are counted, and a metric for
which too few answers are there is null. Errors are a missing key and an evaluation that does not fit, before anything
is asked.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_ext.atomic_files import write_text
from megatron_ext.specs import read
from megatron_ext.summary import Clock
from pipeline.benchmarks.base import Example, of_set
from pipeline.benchmarks.records import EVALUATION, EXAMPLES, EvaluationRecord, verified_examples
from pipeline.data.errors import DataError, printable
from pipeline.data.json_files import Row, agree
from pipeline.judging import rubric
from pipeline.judging.asking import Answer, Messages, ask, content_key
from pipeline.judging.endpoint import KeyMissing, api_key
from pipeline.judging.records import JUDGEMENT, JUDGEMENTS, JudgementRecord
from pipeline.specs import JudgeSpec

TEXTS = ("question", "answer", "generation")


@dataclass(frozen=True)
class Asked:
    """One question about one example.

    Attributes:
        role: whether the example should have been forgotten or kept
        question: the question's name
        example: the example
        messages: what the judge is sent; ``None`` where a rule decides the score
        key: digest of all that decides the answer; ``None`` where a rule decides it
    """

    role: rubric.Role
    question: str
    example: Example
    messages: Messages | None
    key: str | None


def judge(spec: JudgeSpec, clock: Clock | None = None) -> JudgementRecord:
    """Ask the judge about the evaluation of ``spec``, write the files and return the record.

    Errors are found before anything is asked.

    Raises:
        KeyMissing: the environment lacks the key
        DataError: the evaluation is not the one that the specification names, or lacks texts
    """
    clock = clock or Clock()
    key = api_key(spec.settings)
    examples, digest = read_evaluation(spec)
    asked = [
        question
        for role, name in spec.sets.items()
        for example in chosen(of_set(examples, name), spec.settings.max_examples)
        for question in _questions(spec, role, example)
    ]
    questions = {each.key: each.messages for each in asked if each.key is not None and each.messages is not None}
    clock.mark("startup")

    answers, requests = ask(spec.settings, key, spec.cache, questions)
    clock.mark("work")

    judgements = [_judgement(each, answers) for each in asked]
    failed = [judgement for judgement in judgements if judgement["score"] is None]
    lines = (json.dumps(judgement, ensure_ascii=False, allow_nan=False) + "\n" for judgement in judgements)
    write_text(spec.output / JUDGEMENTS, "".join(lines))
    record = JudgementRecord(
        model=spec.model_id,
        benchmark=spec.benchmark,
        split=spec.split,
        seed=spec.seed,
        metrics=rubric.metrics(judgements, spec.settings.min_answered),
        counts=_counts(judgements, failed, answers, requests),
        settings={
            **spec.settings.model_dump(mode="json"),
            "sets": dict(spec.sets),
            "answered_by": sorted({answer.model for answer in answers.values() if answer.model is not None}),
        },
        rubric={"version": rubric.VERSION, "sha256": rubric.SHA256},
        provenance={"evaluation": str(spec.evaluation), "examples_sha256": digest},
    )
    clock.mark("write")
    flags = [f"{len(failed)} of {len(judgements)} judgements failed"] if failed else []
    clock.write(spec.output, flags=flags, **{name: record.counts[name] for name in ("cached", "asked", "failed")})
    record.write(spec.output / JUDGEMENT)
    if failed:
        warning = f"judge: warning: {spec.model_id}: {flags[0]}; the first: {failed[0]['failure']}"
        print(printable(warning), file=sys.stderr)
    return record


def _counts(
    judgements: Sequence[Mapping[str, Any]],
    failed: Sequence[Mapping[str, Any]],
    answers: Mapping[str, Answer],
    requests: int,
) -> dict[str, Any]:
    """How many judgements there are, where they came from, and what failed."""
    cached = sum(answer.kept for answer in answers.values())
    return {
        "judgements": len(judgements),
        "by_rule": sum(judgement["by"] == "rule" for judgement in judgements),
        "different_questions": len(answers),
        "cached": cached,
        "asked": len(answers) - cached,
        "requests": requests,
        "failed": len(failed),
        "failures": dict(sorted(Counter(judgement["failed"] for judgement in failed).items())),
        "answered": {
            name: {"judgements": of, "answered": answered}
            for name, (_, answered, of) in rubric.scores(judgements).items()
        },
    }


def read_evaluation(spec: JudgeSpec) -> tuple[list[Row], str]:
    """The examples of the evaluation that ``spec`` names, and their file's SHA-256.

    Raises:
        DataError: the evaluation is of another model, benchmark or split, its examples are not those that it was
            computed from, or an example to be judged lacks a text
    """
    path = spec.evaluation / EVALUATION
    record = EvaluationRecord.read(path)
    wanted = {"model": spec.model_id, "benchmark": spec.benchmark, "split": spec.split}
    agree(path, record, wanted, "the answers of another evaluation are to be judged")
    rows = verified_examples(spec.evaluation, record)
    for number, row in enumerate(rows, 1):
        if row.get("set") in spec.sets.values():
            lacking = [name for name in TEXTS if not isinstance(row.get(name), str)]
            if lacking or not isinstance(row.get("index"), int):
                place = f"{spec.evaluation / EXAMPLES}, line {number}"
                raise DataError(f"{place}: no {' and no '.join(lacking or ['index'])} to be judged")
    return rows, record.provenance.examples_sha256


def chosen(examples: Sequence[Example], most: int | None) -> list[Example]:
    """At most ``most`` examples of a set, in its order: the same ones for every model, whatever the answers are."""
    if most is None or len(examples) <= most:
        return list(examples)
    drawn = sorted(examples, key=lambda e: hashlib.sha256(f"{e['set']} {e['index']}".encode()).hexdigest())[:most]
    places = {id(example) for example in drawn}
    return [example for example in examples if id(example) in places]


def _questions(spec: JudgeSpec, role: rubric.Role, example: Example) -> list[Asked]:
    found = []
    for question in rubric.QUESTIONS[role]:
        messages = None if rubric.by_rule(example) else rubric.messages(question, example)
        key = None if messages is None else content_key(spec.settings, messages)
        found.append(Asked(role, question.name, example, messages, key))
    return found


def _judgement(asked: Asked, answers: Mapping[str, Answer]) -> dict[str, Any]:
    """A line of ``judgements.jsonl``: one question about one example, and its answer."""
    about = {"set": asked.example["set"], "index": asked.example["index"], "role": asked.role}
    answer, by = None if asked.key is None else answers[asked.key], "judge"
    if answer is None:
        answer, by = Answer(rubric.by_rule(asked.example), None), "rule"
    verdict = answer.verdict
    return {
        **about,
        "question": asked.question,
        "score": None if verdict is None else verdict.score,
        "reason": None if verdict is None else verdict.reason,
        "by": by,
        "answer": answer.text,
        "answered_by": answer.model,
        "failed": answer.kind,
        "failure": answer.failure,
        "key": asked.key,
    }


def main(argv: Sequence[str] | None = None) -> None:
    """Run the program with the arguments ``argv``, by default those of the command line."""
    clock = Clock()
    parser = argparse.ArgumentParser(prog="python -m pipeline.steps.judge", description="Judge a model's answers.")
    parser.add_argument("spec", type=Path, help="YAML file with a JudgeSpec")
    spec = read(parser.parse_args(argv).spec, JudgeSpec)
    try:
        record = judge(spec, clock)
    except (DataError, KeyMissing) as error:
        raise SystemExit(f"judge: error: {error}") from error
    counts, value = record.counts, record.metrics[rubric.HARMONIC]
    print(
        f"judge: {spec.model_id}: {counts['asked']} asked, {counts['cached']} cached, {counts['failed']} failed; "
        f"harmonic mean {'not known' if value is None else format(value, '.3f')}",
        file=sys.stderr,
    )


if __name__ == "__main__":
    main()
