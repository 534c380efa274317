"""Fixtures for all tests, and which of them run in one process."""

from __future__ import annotations

import gc
import os
import signal
import zlib
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from xdist.scheduler import LoadScopeScheduling

ROOT = Path(__file__).resolve().parents[1]
SHARES = 3  # of the tests that take longest: a landing can afford one


def pytest_addoption(parser: pytest.Parser) -> None:
    """What every landing can afford of the tests that take longest."""
    parser.addoption("--share", metavar="HASH", help=f"a commit's hash: one test of {SHARES}, which it picks")


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> Iterator[None]:
    """Mark what real data decides, also through another fixture. Leave out what is long unless ``-m`` asks for it.

    Of what ``-m`` leaves, ``--share`` takes every third one. Files of which some tests are slow come first: at the end
    no process waits for another's last file.
    """
    if "long" not in config.option.markexpr:
        left_out = [item for item in items if item.get_closest_marker("long")]
        items[:] = [item for item in items if item not in left_out]
        config.hook.pytest_deselected(items=left_out)
    for item in items:
        if isinstance(item, pytest.Function) and "shared_data" in item.fixturenames:
            item.add_marker("real_data")
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)
    yield
    if commit := config.option.share:
        first = int(commit, 16) % SHARES
        config.hook.pytest_deselected(items=[item for place, item in enumerate(items) if place % SHARES != first])
        items[:] = items[first::SHARES]


# What planning sets for the steps that it starts.
CACHES = ("HF_HOME", "HF_HUB_CACHE", "HF_DATASETS_CACHE", "HF_TOKEN_PATH")
OUTSIDE = {name: os.environ[name] for name in CACHES if name in os.environ}


@pytest.fixture(autouse=True)
def caches() -> Iterator[None]:
    """No test tells the next one where the hub's files are."""
    yield
    for name in CACHES:
        os.environ.pop(name, None)
    os.environ.update(OUTSIDE)


@pytest.fixture(autouse=True)
def heeded() -> Iterator[None]:
    """Tests, and what they start, heed signals that whoever started the tests may have let them ignore, as ``nohup``
    does, and ``&`` in a script."""
    defaults = {
        signal.SIGINT: signal.default_int_handler,
        signal.SIGTERM: signal.SIG_DFL,
        signal.SIGHUP: signal.SIG_DFL,
    }
    ignored = [number for number in defaults if signal.getsignal(number) is signal.SIG_IGN]
    for number in ignored:
        signal.signal(number, defaults[number])
    yield
    for number in ignored:
        signal.signal(number, signal.SIG_IGN)


def pytest_configure() -> None:
    """Nothing of what is imported with the tests is ever garbage."""
    gc.disable()


def pytest_collection_finish() -> None:
    """Looking for garbage costs as much as there are objects, so that those of modules are left out from here on."""
    gc.freeze()
    gc.enable()


@pytest.hookimpl(optionalhook=True)  # where tests run without pytest-xdist, nobody asks
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> LoadScopeScheduling:
    return Groups(config, log)


class Groups(LoadScopeScheduling):
    """Runs a file's tests in one process, as they share what is slow to make, and files that start several ranks one
    after another.

    Ranks wait for each other many times a step: with those of another test on the same cores, each time for these too.
    There is one group of such files for every two processes. Long tests share nothing, and each is a group.
    """

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.partition("::")[0]
        if "pytest.mark.long" in text_of(file):
            return nodeid
        if not starts_ranks(file):
            return file
        return f"ranks {zlib.crc32(file.encode()) % max(1, len(self.nodes) // 2)}"


def starts_ranks(file: str) -> bool:
    return "run_ranks" in text_of(file) or "pytest.mark.ranks" in text_of(file)


@cache
def text_of(file: str) -> str:
    return (ROOT / file).read_text(encoding="utf-8")


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """A folder with real data, which tests use where it exists: ``$UNLEARN_SHARED_DATA``, or ``../shared/data``."""
    return Path(os.environ.get("UNLEARN_SHARED_DATA", ROOT.parent / "shared" / "data"))
