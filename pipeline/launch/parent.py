"""A step that a run has started ends with it: it is told to stop when its parent process is gone.

A run that is killed cannot tell its steps to. Left alone, they would go on, beside those that the next run starts on
the same files. A step that a person starts has no run and outlives the shell that it was started from.
"""

from __future__ import annotations

import os
import signal
import threading
import time

from pipeline.launch.environment import RUN

LOOKED = 1.0  # seconds between two looks


def follow() -> None:
    """Send this process SIGTERM, once, when its parent is gone; nothing where no run has started it."""
    if os.environ.get(RUN):
        threading.Thread(target=_watch, args=(os.getppid(),), daemon=True).start()


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(LOOKED)
    os.kill(os.getpid(), signal.SIGTERM)
