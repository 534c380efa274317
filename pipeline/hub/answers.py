"""What the hub answers, looked at before the hub's library makes paths of it.

huggingface_hub 2.4.0 puts a file's ETag and a repository's commit into paths of its cache as they come, so that a hub,
or a mirror in its place, could write any file of the user's. And it waits for ever for a list of files, and as long as
a busy hub asks it to. Tests tell when that is mended upstream.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import httpx2

DIGEST = re.compile(r"[0-9A-Za-z_-]{1,128}")
COMMIT = re.compile(r"[0-9a-f]{40}")
# Of a file's own answer, from the hub and not from the server that it may send one to.
COMMIT_HEADER = "X-Repo-Commit"
ETAGS = ("X-Linked-Etag", "ETag")
PATIENCE = 60.0  # seconds without a byte
LONGEST_WAIT = 600  # seconds; a hub that asks for a longer one is not waited for


def guard() -> None:
    """Have the hub's library bound every request and look at every answer with ``check`` from now on."""
    from huggingface_hub import set_client_factory

    set_client_factory(_client)


def _client() -> httpx2.Client:
    from huggingface_hub.utils import _http

    client = _http.default_client_factory()
    hooks = client.event_hooks
    client.event_hooks = {"request": [*hooks["request"], bound], "response": [*hooks["response"], check]}
    return client


def bound(request: httpx2.Request) -> None:
    """Have a request end after ``PATIENCE`` seconds of silence where the library sets no bound of its own."""
    given = request.extensions.get("timeout", {})
    kinds = ("connect", "read", "write", "pool")
    bounds = {kind: PATIENCE if given.get(kind) is None else given[kind] for kind in kinds}
    request.extensions = {**request.extensions, "timeout": bounds}


def check(response: httpx2.Response) -> None:
    """Raises ``ValueError`` for an answer whose commit or digest is none, or that asks for too long a wait."""
    _refuse_waiting(response)
    commit = response.headers.get(COMMIT_HEADER)
    if commit is not None:
        _refuse(commit, COMMIT, COMMIT_HEADER)
        for name in ETAGS:
            if name in response.headers:
                _refuse(response.headers[name].removeprefix("W/").strip('"'), DIGEST, name)
    if "/api/" in response.request.url.path and "json" in response.headers.get("Content-Type", ""):
        response.read()
        found = response.json()
        if isinstance(found, dict) and found.get("sha") is not None:
            _refuse(str(found["sha"]), COMMIT, "sha")


def _refuse_waiting(response: httpx2.Response) -> None:
    from huggingface_hub.utils import _http

    if response.is_success or response.is_redirect:
        return
    limit = _http.parse_ratelimit_headers(response.headers)
    asked = [_http._parse_retry_after(response.headers), limit.reset_in_seconds if limit else None]
    longest = max((seconds for seconds in asked if seconds is not None), default=0)
    if longest > LONGEST_WAIT:
        raise ValueError(f"status {response.status_code}, and it asks to wait for {longest} s. Try again after that")


def _refuse(text: str, form: re.Pattern[str], name: str) -> None:
    if not form.fullmatch(text):
        raise ValueError(f"{name} {text[:60]!r} of the hub's answer is no {'commit' if form is COMMIT else 'digest'}")
