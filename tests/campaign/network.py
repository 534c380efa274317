"""A network that fails: the hub and the judge behind a server that is late, cut off, overloaded or talks nonsense.

A case is one kind of fault at one kind of request, once or always. Fetching a data set must end in time: with the right
files, or with an error that names the data set, in few lines, with nothing under a final name. Judging must end in time
with each question answered or counted as failed. Neither shows its token or key. On a good network both then succeed.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from unittest import mock

from huggingface_hub import constants, file_download

from pipeline.data.cache import MANIFEST
from pipeline.hub import answers
from pipeline.hub.download import HubError
from pipeline.judging.asking import ask, content_key
from pipeline.judging.settings import JudgeSettings
from pipeline.specs import FetchDataSpec
from pipeline.steps.fetch_data import fetch_files

COMMIT = "0123456789abcdef0123456789abcdef01234567"
NAME, CONTENT = "full.json", json.dumps([{"question": f"Who is {i}?", "answer": "Ada."} for i in range(2000)]).encode()
DIGEST = hashlib.sha256(CONTENT).hexdigest()
TOKEN, KEY = "hf_verysecretindeed0123456789", "sk-verysecretindeed0123456789"
ELSEWHERE = "/elsewhere"
SECONDS = 60.0  # that a case may take
# Seconds without an answer that the library of the hub, and the judge, wait for; and what both do on a good network.
PATIENCE, JUDGED, GOOD = 1, 5, 60
LINES = 3
QUESTIONS = 6
VERDICT = json.dumps({"score": 1, "reason": "because"})


class Handler(BaseHTTPRequestHandler):
    """Answers as ``Server.fault`` says, or well."""

    protocol_version = "HTTP/1.1"
    server: Server

    def do_HEAD(self) -> None:
        self._answer("head")

    def do_GET(self) -> None:
        self._answer("list" if "/api/" in self.path else "file")

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self._answer("judge")

    def _answer(self, request: str) -> None:
        try:
            if self.path == ELSEWHERE and ("Authorization" in self.headers or KEY in str(self.headers)):
                self.server.leaked = True
            fault = self.server.meets(request)
            if fault is None:
                self.good(request)
            else:
                fault(self, request)
        except OSError:  # who asked has gone
            self.close_connection = True

    def good(self, request: str) -> None:
        """The right answer."""
        if request == "judge":
            message = {"message": {"role": "assistant", "content": VERDICT}}
            self.send(200, json.dumps({"model": "judge-1", "choices": [message]}).encode())
        elif request == "list" and "/tree/" in self.path:
            files = [{"type": "file", "path": NAME, "size": len(CONTENT), "oid": "0" * 40}]
            self.send(200, json.dumps(files).encode())
        elif request == "list":
            known = {"id": "some/set", "sha": COMMIT, "siblings": [{"rfilename": NAME}], "private": False}
            self.send(200, json.dumps(known).encode())
        else:
            self.send(200, CONTENT, {"ETag": f'"{DIGEST}"', "X-Repo-Commit": COMMIT})

    def send(self, status: int, body: bytes, headers: dict[str, str] | None = None, size: int | None = None) -> None:
        """An answer whose headers name ``size`` bytes."""
        self.send_response(status)
        length = len(body) if size is None else size
        for name, value in (
            {"Content-Length": str(length), "Content-Type": "application/json"} | (headers or {})
        ).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)
        if len(body) != length:
            self.wfile.flush()
            self.close_connection = True

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


Fault = Callable[[Handler, str], None]


class Server(ThreadingHTTPServer):
    """The hub and the judge, on a port of this machine."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.request_queue_size = 64
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.closing, self.leaked, self._lock = threading.Event(), False, threading.Lock()
        self.fault: Fault | None = None
        self.where, self.times, self.met = "", 0, 0
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()

    def meets(self, request: str) -> Fault | None:
        """The fault that this request meets, which is counted."""
        with self._lock:
            if self.fault is None or request != self.where or self.times == 0:
                return None
            self.times -= 1
            self.met += 1
            return self.fault

    def close(self) -> None:
        """End it, and what still waits."""
        self.closing.set()
        self.shutdown()
        self.server_close()


def late(handler: Handler, request: str) -> None:
    """Nothing, until long after everybody has gone."""
    handler.server.closing.wait(SECONDS)
    handler.close_connection = True


def gone(handler: Handler, request: str) -> None:
    """The end of the connection."""
    handler.close_connection = True


def half(handler: Handler, request: str) -> None:
    """The right beginning, then the end of the connection."""
    body = CONTENT[: len(CONTENT) // 2] if request == "file" else b'{"id": "some/set", "choices": [{"mess'
    headers = {"ETag": f'"{DIGEST}"', "X-Repo-Commit": COMMIT} if request in ("file", "head") else {}
    handler.send(200, body, headers, size=len(CONTENT))


def status(number: int, **headers: str) -> Fault:
    """An answer of that status with a page of HTML."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}

    def answer(handler: Handler, request: str) -> None:
        handler.send(number, b"<html><body>no</body></html>", {"Content-Type": "text/html", **named})

    return answer


def says(body: bytes, kind: str = "application/json") -> Fault:
    """Status 200 and something else than was asked for."""
    return lambda handler, request: handler.send(200, body, {"Content-Type": kind})


def leads(address: str) -> Fault:
    """A redirect."""
    return lambda handler, request: handler.send(302, b"", {"Location": address})


def itself(handler: Handler, request: str) -> None:
    """A redirect to what was asked for."""
    handler.send(302, b"", {"Location": f"{handler.server.url}{handler.path}"})


def elsewhere(handler: Handler, request: str) -> None:
    """A redirect to another host, whose name is this machine's too."""
    handler.send(302, b"", {"Location": f"http://localhost:{handler.server.server_port}{ELSEWHERE}"})


FAULTS: dict[str, Fault] = {
    "no answer in time": late,
    "the connection is closed": gone,
    "half an answer": half,
    "429": status(429),
    "429, again in 0 s": status(429, Retry_After="0"),
    "429, again in a day": status(429, Retry_After="86400"),
    "500": status(500),
    "503": status(503),
    "401": status(401),
    "404": status(404),
    "418": status(418),
    "a page of HTML": says(b"<html>log in</html>", "text/html"),
    "no JSON": says(b"{]"),
    "JSON of another kind": says(b"[1, null]"),
    "JSON without what is needed": says(b"{}"),
    "JSON that nests deeply": says(b"[" * 100_000),
    "nothing": says(b""),
    "bytes that are no text": says(b"\xff\xfe\x00\x80"),
    "a redirect to itself": itself,
    "a redirect to another host": elsewhere,
    "a redirect to nobody": leads("http://127.0.0.1:9/"),
    "a redirect to a file": leads("file:///etc/hostname"),
    "a redirect to no address": leads("http://[/"),
}


@dataclass(frozen=True)
class Case:
    """A fault at a kind of request, ``times`` often, -1 for always."""

    name: str
    where: str
    times: int

    def __str__(self) -> str:
        place = self.where if self.where == "judge" else f"hub, {self.where}"
        return f"{place}: {self.name}, {'once' if self.times == 1 else 'always'}"


def cases() -> list[Case]:
    """Every fault at every kind of request, once and always."""
    places = ("list", "head", "file", "judge")
    return [Case(name, where, times) for where in places for name in FAULTS for times in (1, -1)]


@contextmanager
def served() -> Iterator[Server]:
    """A server that is the hub of this process, with a token, and no proxy between."""
    server = Server()
    variables = {name: value for name, value in os.environ.items() if "proxy" not in name.lower()}
    variables |= {"HF_TOKEN": TOKEN}
    hub = {
        "ENDPOINT": server.url,
        "HUGGINGFACE_CO_URL_TEMPLATE": server.url + "/{repo_id}/resolve/{revision}/{filename}",
        "HF_HUB_OFFLINE": False,
        "HF_HUB_DISABLE_XET": True,
    }
    try:
        with mock.patch.dict(os.environ, variables, clear=True), mock.patch.multiple(constants, **hub):
            yield server
    finally:
        server.close()


@contextmanager
def patient(seconds: int) -> Iterator[None]:
    """The hub's library waits so long for an answer."""
    waits = {"HF_HUB_ETAG_TIMEOUT": seconds, "HF_HUB_DOWNLOAD_TIMEOUT": seconds}
    with (
        mock.patch.multiple(constants, **waits),
        mock.patch.object(file_download, "_ETAG_RETRY_TIMEOUT", seconds),
        mock.patch.object(answers, "PATIENCE", float(seconds)),
    ):
        yield


def fetched(server: Server, folder: Path) -> str | None:
    """Fetch the data set into ``folder``; what the error says, or ``None``."""
    spec = FetchDataSpec(repository="some/set", revision="main", files=[["full"]], output=folder / "data")
    try:
        fetch_files(spec, mock.Mock())
    except HubError as error:
        return str(error)
    return None


def hub_wrong(server: Server, case: Case, folder: Path) -> str | None:
    """What is wrong with how a fetch meets a fault."""
    final = folder / "data" / "files" / NAME
    with patient(PATIENCE):
        said = fetched(server, folder)
    if said is None and (not final.is_file() or final.read_bytes() != CONTENT):
        return "other bytes than the hub's were taken for the file"
    if said is not None:
        if final.exists() or (folder / "data" / MANIFEST).exists():
            return "an error, and a file under its final name"
        if TOKEN in said or "some/set" not in said or len(said.splitlines()) > LINES or "Traceback" in said:
            return f"said: {said}"
    server.fault = None
    with patient(GOOD):
        again = fetched(server, folder)
    if again is not None or final.read_bytes() != CONTENT:
        return f"on a good network: {again or 'other bytes'}"
    return None


def judge_wrong(server: Server, case: Case, folder: Path) -> str | None:
    """What is wrong with how questions to a judge meet a fault."""
    settings = JudgeSettings(
        base_url=f"{server.url}/v1",
        model="judge",
        api_key_env="JUDGE_KEY",
        timeout_seconds=JUDGED,
        retries=2,
        backoff_seconds=0.01,
        give_up_after=4,
    )
    asked = [[{"role": "user", "content": f"question {i}"}] for i in range(QUESTIONS)]
    questions = {content_key(settings, messages): messages for messages in asked}
    first, _ = ask(settings, KEY, folder / "cache", questions)
    if set(first) != set(questions):
        return "a question without an answer or a failure"
    failed = [answer for answer in first.values() if answer.verdict is None]
    if any(not answer.kind or not answer.failure for answer in failed):
        return "a failure without a reason"
    if KEY in str(first):
        return "the key is shown"
    if case.times == 1 and case.name in ("no answer in time", "half an answer", "500", "429") and failed:
        return f"one fault was not outlived: {failed[0].failure}"
    server.fault = None
    settings = settings.model_copy(update={"timeout_seconds": GOOD, "give_up_after": 100})
    again, _ = ask(settings, KEY, folder / "cache", questions)
    if any(answer.verdict is None or answer.kept == (first[name].verdict is None) for name, answer in again.items()):
        return f"on a good network: {again}"
    return None


def wrong(server: Server, case: Case) -> str | None:
    """What is wrong with how a case is met; ``None``: nothing."""
    server.fault, server.where, server.times, server.leaked = FAULTS[case.name], case.where, case.times, False
    server.met = 0
    begun = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="campaign-") as name:
        folder = Path(name)
        with mock.patch.object(constants, "HF_HUB_CACHE", str(folder / "hub")):
            problem = (judge_wrong if case.where == "judge" else hub_wrong)(server, case, folder)
    if problem is None and server.leaked:
        problem = "a token or key went where a redirect led"
    if problem is None and not server.met:
        problem = "no such request was made, so that nothing met the fault"
    taken = time.monotonic() - begun
    return problem or (f"it took {taken:.0f} s" if taken > SECONDS else None)


def run(count: int | None, seed: int) -> int:
    """Try ``count`` cases, or all; prints each that is wrong, and how many were right.

    Returns:
        How many were not met as they should be.
    """
    chosen = cases()
    if count is not None:
        chosen = random.Random(seed).sample(chosen, min(count, len(chosen)))
    begun, bad = time.monotonic(), 0
    with served() as server:
        for case in chosen:
            problem = wrong(server, case)
            if problem is not None:
                bad += 1
                print(f"{case}: {problem}", flush=True)
    print(f"network: {len(chosen) - bad} of {len(chosen)} faults were met, in {time.monotonic() - begun:.0f} s")
    return bad
