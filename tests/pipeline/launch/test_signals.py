"""Signals that a launcher passes on to what it has started."""

from __future__ import annotations

import os
import signal

from pipeline.launch.signals import passed_on


def test_sigterm_once_and_each_sigint_after_those_that_came_early() -> None:
    sent: list[int] = []
    before = signal.getsignal(signal.SIGTERM)
    with passed_on(sent.append) as (received, begin):
        os.kill(os.getpid(), signal.SIGTERM)
        assert sent == []
        begin()
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGINT):
            os.kill(os.getpid(), number)
    assert sent == [signal.SIGTERM, signal.SIGINT, signal.SIGINT]
    assert received == [signal.SIGTERM, signal.SIGTERM, signal.SIGINT, signal.SIGINT]
    assert signal.getsignal(signal.SIGTERM) is before


def test_what_runs_in_the_background_of_a_script_goes_on_ignoring_the_terminal() -> None:
    sent: list[int] = []
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with passed_on(sent.append) as (received, begin):
            begin()
            os.kill(os.getpid(), signal.SIGINT)
            assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)
    assert sent == received == []
