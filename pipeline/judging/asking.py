"""Questions put to a judge, several at a time. Equal questions are asked once, and none whose answer is on disk."""

from __future__ import annotations

import asyncio
import hashlib
import json
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_ext.atomic_files import write_json
from pipeline.judging import rubric
from pipeline.judging.endpoint import SHOWN, Endpoint, Failure, body
from pipeline.judging.settings import JudgeSettings

SCHEMA = 1  # of a kept answer
EVERY = 15.0  # seconds between lines on how far it is

Messages = list[dict[str, str]]


@dataclass(frozen=True)
class Answer:
    """What came of a question: a verdict, or a failure.

    Attributes:
        verdict: the verdict, or ``None`` for a failure
        text: what the judge wrote, also where it cannot be read
        model: the model that the endpoint says has answered
        kept: whether the answer is from an earlier run
        kind: a few words that equal failures share
        failure: the failure in words
    """

    verdict: rubric.Verdict | None
    text: str | None
    model: str | None = None
    kept: bool = False
    kind: str | None = None
    failure: str | None = None


def identity(settings: JudgeSettings, messages: Messages) -> dict[str, Any]:
    """All that decides an answer: address, rubric and request. No key and no settings of the transport."""
    return {"base_url": settings.base_url.rstrip("/"), "rubric": rubric.SHA256, "request": body(settings, messages)}


def content_key(settings: JudgeSettings, messages: Messages) -> str:
    """The name of a question by its content: SHA-256 of ``identity``."""
    text = json.dumps(identity(settings, messages), sort_keys=True, ensure_ascii=True, separators=(",", ":"))
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


def ask(
    settings: JudgeSettings, key: str | None, cache: Path, questions: Mapping[str, Messages]
) -> tuple[dict[str, Answer], int]:
    """Ask all questions.

    What the endpoint does is never an error: it becomes a failure of the question.

    Args:
        settings: how the judge is reached and asked
        key: the endpoint's key, where it needs one
        cache: folder of answers; what it holds is not asked, and each new answer is written there at once
        questions: content key -> messages

    Returns:
        an answer for each question, and the number of requests that were sent
    """
    found: dict[str, Answer] = {}
    for name in questions:
        kept = _kept(_file(cache, name))
        if kept is not None:
            found[name] = kept
    missing = [(name, messages) for name, messages in questions.items() if name not in found]
    if not missing:
        return found, 0
    answers, requests = asyncio.run(_ask_all(settings, key, cache, missing))
    return found | answers, requests


async def _ask_all(
    settings: JudgeSettings, key: str | None, cache: Path, questions: Sequence[tuple[str, Messages]]
) -> tuple[dict[str, Answer], int]:
    found: dict[str, Answer] = {}
    waiting = iter(questions)
    last = time.monotonic()

    async def work(endpoint: Endpoint, waiting: Iterator[tuple[str, Messages]]) -> None:
        nonlocal last
        for name, messages in waiting:
            found[name] = await _answer(endpoint, messages)
            if found[name].verdict is not None:
                _keep(_file(cache, name), identity(settings, messages), found[name])
            if time.monotonic() - last > EVERY:
                last = time.monotonic()
                failed = sum(answer.verdict is None for answer in found.values())
                print(f"judge: {len(found)} of {len(questions)} questions, {failed} failed", file=sys.stderr)

    async with Endpoint(settings, key) as endpoint:
        await asyncio.gather(*(work(endpoint, waiting) for _ in range(min(settings.concurrency, len(questions)))))
        return found, endpoint.requests


async def _answer(endpoint: Endpoint, messages: Messages) -> Answer:
    """The answer to one question.

    After an answer that the rubric cannot read, the judge is reminded of the form and asked once more.
    """
    if endpoint.given_up is not None:
        return Answer(None, None, kind="not asked", failure=f"not asked: {endpoint.given_up}")
    text = model = None
    problem = Failure("not asked", "")
    asked: Sequence[Mapping[str, str]] = messages
    for _ in range(2):
        try:
            reply = await endpoint.complete(asked)
        except Failure as failure:
            return Answer(None, text, model, kind=failure.kind, failure=str(failure))
        text, model = reply.text, reply.model
        try:
            verdict = rubric.parse(text)
        except ValueError as error:
            text = text[:SHOWN]
            problem = Failure("unreadable answer", str(error))
            endpoint.failed(problem)
            wrong = {"role": "assistant", "content": text}
            asked = [*messages, wrong, {"role": "user", "content": rubric.REMINDER}]
            continue
        endpoint.succeeded()
        return Answer(verdict, text, model)
    return Answer(None, text, model, kind=problem.kind, failure=str(problem))


def _file(cache: Path, name: str) -> Path:
    return cache / name[:2] / f"{name}.json"


def _keep(path: Path, about: Mapping[str, Any], answer: Answer) -> None:
    """Write an answer for later runs; where that fails, this run goes on."""
    try:
        if path.parent.is_symlink():  # of somebody who shares the cache, to a folder that is not part of it
            raise OSError(f"{path.parent} is a link")
        write_json(path, {"schema": SCHEMA, **about, "answer": answer.text, "model": answer.model})
    except OSError as error:
        print(f"judge: warning: an answer is not kept for later runs: {error}", file=sys.stderr)


def _kept(path: Path) -> Answer | None:
    """The answer that an earlier run has left; ``None`` for none, or a file that is broken."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if found["schema"] != SCHEMA or not isinstance(found["model"], str | None):
            return None
        return Answer(rubric.parse(found["answer"]), found["answer"], found["model"], kept=True)
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return None
