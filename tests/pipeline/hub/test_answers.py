"""A hub that answers what would become paths elsewhere, asked over a real connection."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from pipeline.hub import answers
from pipeline.steps.programs import ROOT

COMMIT = "a" * 40
GOOD = {"ETag": '"d41d8cd98f00b204e9800998ecf8427e"', "X-Repo-Commit": COMMIT, "sha": COMMIT}
FETCH = """
import sys
from pipeline.hub import answers, download
if sys.argv[1] == "unguarded":
    answers.guard = lambda: None
folder, commit = download.snapshot("some/set", "main", ["full.json"], "dataset")
print((folder / "full.json").read_text(), commit)
"""


class Hub:
    """A data set of one file, whose digest, commit and list say what ``said`` says."""

    def __init__(self) -> None:
        hub = self
        self.said: dict[str, str] = {}

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                said = GOOD | hub.said
                names = [{"type": "file", "path": "full.json", "size": 2, "oid": "abc"}]
                about: Any = {"id": "some/set", "sha": said["sha"], "siblings": [{"rfilename": "full.json"}]}
                about = names if "/tree/" in self.path else about
                headers = {"Content-Type": "application/json"}
                if "/resolve/" in self.path:
                    about, headers = [], {name: text for name, text in said.items() if name != "sha"}
                body = json.dumps(about).encode()
                self.send_response(200)
                for name, text in {"Content-Length": str(len(body)), **headers}.items():
                    self.send_header(name, text)
                self.end_headers()
                if self.command == "GET":
                    self.wfile.write(body)

            do_HEAD = do_GET

            def log_message(self, *_: Any) -> None:
                pass

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._http.server_port}"
        threading.Thread(target=self._http.serve_forever, args=(0.02,), daemon=True).start()

    def close(self) -> None:
        self._http.shutdown()
        self._http.server_close()


@pytest.fixture
def hub() -> Iterator[Hub]:
    found = Hub()
    yield found
    found.close()


def fetch(hub: Hub, folder: Path, how: str = "guarded") -> tuple[subprocess.CompletedProcess[str], list[str]]:
    """A fetch in a process of its own, and what it left outside of its cache."""
    home = folder / "a" / "b" / "home"
    home.mkdir(parents=True)
    settings = {"HF_HOME": str(home), "HF_ENDPOINT": hub.url, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1"}
    environment = {name: text for name, text in os.environ.items() if "proxy" not in name.lower()} | settings
    command = [sys.executable, "-c", FETCH, how]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60)
    return done, sorted(
        path.name
        for path in folder.rglob("*")
        if path.is_file() and not path.is_relative_to(home / "hub") and path.name[0] != "."
    )


def test_what_a_hub_answers_is_fetched(hub: Hub, tmp_path: Path) -> None:
    done, _ = fetch(hub, tmp_path)
    assert done.stdout == f"[] {COMMIT}\n", done.stderr


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("ETag", '"../../../../../victim"'),
        ("X-Linked-Etag", 'W/"../../../../../victim"'),
        ("sha", "../../../../../victim"),
    ],
)
def test_a_name_that_leaves_the_cache_is_refused(name: str, text: str, hub: Hub, tmp_path: Path) -> None:
    """Only this has a hub that is not to be trusted; nothing is written outside of the cache."""
    hub.said = {name: text}
    done, left = fetch(hub, tmp_path)
    assert done.returncode and f"{name} '../../../../../victim' of the hub's answer is no " in done.stderr
    assert left == [] and done.stdout == ""


@pytest.mark.parametrize("text", ["../victim", "/etc/x", "b" * 39, "main", "", "A" * 40])
def test_a_commit_is_forty_digits(text: str) -> None:
    httpx2 = pytest.importorskip("httpx2")
    request = httpx2.Request("HEAD", "https://host/some/set/resolve/main/full.json")
    answers.check(httpx2.Response(200, headers={"X-Repo-Commit": COMMIT, "ETag": '"abc"'}, request=request))
    with pytest.raises(ValueError, match="X-Repo-Commit"):
        answers.check(httpx2.Response(200, headers={"X-Repo-Commit": text, "ETag": '"abc"'}, request=request))


def test_silence_has_an_end() -> None:
    """A bound of the library's own stays; where it has none, as its client has none, there is one."""
    httpx2 = pytest.importorskip("httpx2")
    from huggingface_hub.utils import _http

    assert _http.default_client_factory().timeout == httpx2.Timeout(None), "mended upstream"
    given = {"connect": None, "read": 10.0, "write": None, "pool": None}
    request = httpx2.Request("GET", "https://host/api/datasets/some/set", extensions={"timeout": given})
    answers.bound(request)
    assert request.extensions["timeout"] == dict.fromkeys(given, answers.PATIENCE) | {"read": 10.0}


@pytest.mark.parametrize(
    "headers", [{"Retry-After": "86400"}, {"RateLimit": '"api";r=0;t=86400'}, {"Retry-After": "601"}]
)
def test_a_hub_that_asks_for_a_day_is_not_waited_for(headers: dict[str, str]) -> None:
    """The library sleeps for as long as it is asked to."""
    httpx2 = pytest.importorskip("httpx2")
    request = httpx2.Request("GET", "https://host/some/set/resolve/main/full.json")
    answers.check(httpx2.Response(429, headers={"Retry-After": "30"}, request=request))
    with pytest.raises(ValueError, match="status 429, and it asks to wait for"):
        answers.check(httpx2.Response(429, headers=headers, request=request))


def test_the_guard_is_still_needed(hub: Hub, tmp_path: Path) -> None:
    """Fails when huggingface_hub has mended it: then ``pipeline.hub.answers`` can go."""
    hub.said = {"ETag": '"../../../../../victim"'}
    _, left = fetch(hub, tmp_path, "unguarded")
    assert "victim" in left
