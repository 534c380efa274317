"""An OpenAI-compatible endpoint, ``POST <base_url>/chat/completions``, with retries; and the key that opens it.

The key is read from the environment when it is needed. It is in the ``Authorization`` header and nowhere else: every
text that leaves this module has it replaced.
"""

from __future__ import annotations

import asyncio
import email.utils
import html
import json
import math
import os
import re
import time
import urllib.parse
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from types import TracebackType
from typing import TYPE_CHECKING, Any

from pipeline.judging.rubric import writable
from pipeline.judging.settings import JudgeSettings

if TYPE_CHECKING:
    from collections.abc import Sequence

    import httpx2

LARGEST = 2**20  # bytes of an answer that are read; a verdict has a few hundred
LONGEST_WAIT = 120.0  # seconds; a server that asks for a longer one is not waited for
LONGEST_BACKOFF = 60.0
SHOWN = 2000  # characters of what a server said that are kept
# Status codes that another try may mend, and those that fail for every question: a wrong key, model or address.
RETRIED = (408, 409, 425, 429)
HOPELESS = (401, 403, 404)
HIDDEN = "***"  # in place of the key
# Characters as JSON and Python write them, and how many layers of such escapes are looked through.
ESCAPE = re.compile(r"\\(?:u\{?(?P<code>[0-9A-Fa-f]{4})\}?|x(?P<short>[0-9A-Fa-f]{2})|(?P<itself>[^\sux]))")
DEPTH = 8


class Failure(Exception):
    """A question that has no answer.

    Attributes:
        kind: a few words that equal failures share
        text: what was answered
        hopeless: whether every other question would fail as well
    """

    def __init__(self, kind: str, detail: str, text: str | None = None, hopeless: bool = False):
        super().__init__(f"{kind}: {detail}" if detail else kind)
        self.kind, self.text, self.hopeless = kind, text, hopeless


class KeyMissing(Exception):
    """The environment does not hold the key that the settings name."""


@dataclass(frozen=True)
class Reply:
    """What the endpoint answered, and the model that it says has answered."""

    text: str
    model: str | None


def api_key(settings: JudgeSettings, environ: Mapping[str, str] = os.environ) -> str | None:
    """The key, or ``None`` where none is named; raises ``KeyMissing`` where the variable holds no usable one."""
    name = settings.api_key_env
    if name is None:
        return None
    key = environ.get(name, "").strip()
    if not key:
        raise KeyMissing(f"judge.api_key_env: the environment variable {name} is not set; it must hold the judge's key")
    if not (key.isascii() and key.isprintable()) or " " in key:
        raise KeyMissing(f"judge.api_key_env: what the environment variable {name} holds is not a key: one word, ASCII")
    return key


def body(settings: JudgeSettings, messages: Sequence[Mapping[str, str]]) -> dict[str, Any]:
    """The request: a setting that is ``None`` is not sent."""
    sent = {"temperature": settings.temperature, "seed": settings.seed, "max_tokens": settings.max_tokens}
    found = {name: value for name, value in sent.items() if value is not None}
    return {"model": settings.model, "messages": list(messages), **found}


class Endpoint:
    """A context in which questions can be put, several at a time.

    ``requests``: how many were sent. A failed one is tried again up to ``settings.retries`` times, after a wait that
    doubles or the one that the server asks for in ``Retry-After``, which then holds for all. After
    ``settings.give_up_after`` failures in a row, ``given_up`` says why nothing more should be asked.
    """

    def __init__(self, settings: JudgeSettings, key: str | None):
        self.settings, self._key = settings, key
        self.requests = 0
        self.given_up: str | None = None
        self._failures_in_a_row = 0
        self._not_before = 0.0
        self._client: httpx2.AsyncClient | None = None

    async def __aenter__(self) -> Endpoint:
        import httpx2

        headers = {"Authorization": f"Bearer {self._key}"} if self._key else {}
        limits = httpx2.Limits(max_connections=self.settings.concurrency)
        try:
            # No time-outs of its own: `_try` has one for all of a request. No redirects: the key is for one server. No
            # proxy of the environment for this machine: it would get the key in plain text, and cannot reach it anyway.
            self._client = httpx2.AsyncClient(
                headers=headers,
                limits=limits,
                timeout=None,
                follow_redirects=False,
                trust_env=not self.settings.is_here,
            )
        except Exception as error:  # the environment's proxy or certificates will not do
            self.given_up = self._hide(f"no connection can be made: {type(error).__name__}: {error}")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._client is not None:
            await self._client.aclose()

    async def complete(self, messages: Sequence[Mapping[str, str]]) -> Reply:
        """The endpoint's answer to ``messages``; raises ``Failure``, also where it was given up meanwhile."""
        for attempt in range(self.settings.retries + 1):
            await asyncio.sleep(max(0.0, self._not_before - time.monotonic()))
            if self.given_up is not None:
                raise Failure("given up", self.given_up)
            try:
                return await self._try(messages)
            except _Again as again:
                failure, wait = again.failure, again.wait
            self.failed(failure)
            if wait is None:
                wait = min(self.settings.backoff_seconds * 2**attempt, LONGEST_BACKOFF)
            elif wait > LONGEST_WAIT:
                break
            else:
                self._not_before = max(self._not_before, time.monotonic() + wait)
            if attempt < self.settings.retries:
                await asyncio.sleep(wait)
        raise failure

    def failed(self, failure: Failure) -> None:
        """Count a failure in the row of them."""
        self._failures_in_a_row += 1
        if failure.hopeless or self._failures_in_a_row >= self.settings.give_up_after:
            count = f" ({self._failures_in_a_row} requests failed in a row)" if not failure.hopeless else ""
            self.given_up = self.given_up or f"{failure}{count}"

    def succeeded(self) -> None:
        self._failures_in_a_row = 0

    async def _try(self, messages: Sequence[Mapping[str, str]]) -> Reply:
        self.requests += 1
        try:
            async with asyncio.timeout(self.settings.timeout_seconds):
                status, headers, text = await self._post(body(self.settings, messages))
        except TimeoutError:
            raise _Again(Failure("timeout", f"no answer in {self.settings.timeout_seconds:g} s")) from None
        # The library raises its own classes, the operating system's and its transports'; each costs one question only.
        except Exception as error:
            raise _Again(Failure("not reached", self._hide(f"{type(error).__name__}: {error}"))) from None
        if status == 200:
            return self._reply(text)
        failure = Failure(f"status {status}", self._hide(text)[:SHOWN].strip(), hopeless=status in HOPELESS)
        if status in RETRIED or status >= 500:
            raise _Again(failure, _retry_after(headers.get("retry-after")))
        self.failed(failure)
        raise failure

    async def _post(self, request: dict[str, Any]) -> tuple[int, Mapping[str, str], str]:
        assert self._client is not None
        url = f"{self.settings.base_url.rstrip('/')}/chat/completions"
        async with self._client.stream("POST", url, json=request) as response:
            read = bytearray()
            async for part in response.aiter_bytes():
                read += part
                if len(read) > LARGEST:
                    break
            return response.status_code, response.headers, bytes(read[:LARGEST]).decode("utf-8", "replace")

    def _reply(self, text: str) -> Reply:
        """The first choice's text; of a body that is no chat completion, the body, which no rubric can read."""
        try:
            found = json.loads(text)
            answer, model = found["choices"][0]["message"]["content"], found.get("model")
        except (ValueError, RecursionError, LookupError, TypeError, AttributeError):
            answer = model = None
        if not isinstance(answer, str):
            answer = text
        return Reply(self._hide(answer), self._hide(model) if isinstance(model, str) else None)

    def _hide(self, text: str) -> str:
        """``text`` without the key, and without halves of surrogate pairs, which no file can hold. Where the key is
        there in a form that JSON, HTML or an address can have, nothing is left of the text."""
        if self._key:
            text = text.replace(self._key, HIDDEN)
            try:
                found = any(self._key in form for form in _decoded(text))
            except ValueError:  # an escape of thousands of digits
                found = True
            if found:
                text = HIDDEN
        return writable(text)


def _decoded(text: str) -> Iterator[str]:
    """``text`` without its escapes, and what that becomes without its own, a few times."""
    for _ in range(DEPTH):
        before, text = text, urllib.parse.unquote(html.unescape(ESCAPE.sub(_character, text)))
        if text == before:
            return
        yield text


def _character(escape: re.Match[str]) -> str:
    code = escape["code"] or escape["short"]
    return chr(int(code, 16)) if code else escape["itself"]


class _Again(Exception):
    """A failure that another try may mend, after ``wait`` seconds if the server said so."""

    def __init__(self, failure: Failure, wait: float | None = None):
        super().__init__(str(failure))
        self.failure, self.wait = failure, wait


def _retry_after(value: str | None) -> float | None:
    """Seconds that a ``Retry-After`` header asks for, as a number or a date; ``None`` for none that can be read."""
    if value is None:
        return None
    try:
        seconds = float(value)
    except ValueError:
        try:
            when = email.utils.parsedate_to_datetime(value)
        except (ValueError, OverflowError):
            return None
        when = when if when.tzinfo else when.replace(tzinfo=UTC)
        seconds = (when - datetime.now(UTC)).total_seconds()
    return max(0.0, seconds) if math.isfinite(seconds) else None
