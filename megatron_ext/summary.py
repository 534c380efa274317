"""Where a step's wall time went, and what it wants noticed: ``summary.json``."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from megatron_ext.atomic_files import write_json

SPANS = ("startup", "work", "write")
# In the environment of a step: when what has started its process was itself started, in seconds since 1970.
LAUNCHED = "UNLEARN_LAUNCHED"


class Clock:
    """Splits a step's life, from the creation of its launcher, into start-up, work and writing."""

    def __init__(self) -> None:
        import psutil

        created = psutil.Process().create_time()
        self._last = min(created, float(os.environ.get(LAUNCHED, created)))
        self._spans = dict.fromkeys(SPANS, 0.0)
        self._parts: dict[str, float] = {}

    def mark(self, span: str, part: str | None = None) -> None:
        """The time since the last mark was spent on ``span``, one of ``SPANS``, and on the named ``part`` of it."""
        now = time.time()
        self._spans[span] += now - self._last
        if part is not None:
            self._parts[part] = self._parts.get(part, 0.0) + now - self._last
        self._last = now

    def times(self) -> dict[str, float]:
        """``<span>_seconds`` and ``<part>_seconds``."""
        return {f"{name}_seconds": round(value, 3) for name, value in (*self._spans.items(), *self._parts.items())}

    def write(self, folder: Path, flags: Sequence[str] = (), **facts: Any) -> dict[str, Any]:
        """Write ``folder/summary.json``: times, ``flags``, and the step's own facts. Returns what it holds."""
        summary = {**self.times(), "flags": list(flags), **facts}
        write_json(folder / "summary.json", summary)
        return summary
