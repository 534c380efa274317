"""Signals to a launcher: passed on to what it has started, and what becomes of the exit status."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

STOPPED = 143  # the status that SIGTERM gives


@contextmanager
def passed_on(send: Callable[[int], None]) -> Iterator[tuple[list[int], Callable[[], None]]]:
    """Give SIGTERM, the first one only, and SIGINT to ``send`` while this lasts.

    A SIGINT that is ignored stays so: a script's shell has its background programs ignore the terminal's ^C.

    Yields:
        The signals that came, and what to call when there is something to send them to: those that came before are
        sent then.
    """
    received: list[int] = []
    early: list[int] = []
    started = False

    def receive(number: int, _: FrameType | None) -> None:
        again = number in received
        received.append(number)
        if not started:
            early.append(number)
        elif not (again and number == signal.SIGTERM):
            send(number)

    def begin() -> None:
        nonlocal started
        started = True
        for number in set(early):
            send(number)

    ignored = signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    numbers = (signal.SIGTERM,) if ignored else (signal.SIGTERM, signal.SIGINT)
    previous = {number: signal.signal(number, receive) for number in numbers}
    try:
        yield received, begin
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def exit_status(returncode: int) -> int:
    """The exit status that a shell gives to a process's return code, which for one that a signal ended is negative."""
    return returncode if returncode >= 0 else 128 - returncode
