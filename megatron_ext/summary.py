"""Where a step's wall time went, and what it wants noticed: ``summary.json``."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def write_json(path: Path, value: Any) -> None:
    """Write under a temporary name, then rename."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n")
    os.replace(temporary, path)


class Clock:
    """Splits a process's life into start-up (from its creation), work and writing."""

    def __init__(self) -> None:
        import psutil

        self._last = psutil.Process().create_time()
        self._spans: dict[str, float] = {}

    def mark(self, span: str) -> None:
        """The time since the last mark was spent on ``span``: "startup", "work" or "write"."""
        now = time.time()
        self._spans[span] = self._spans.get(span, 0.0) + now - self._last
        self._last = now

    def write(self, folder: Path, flags: Sequence[str] = (), **facts: Any) -> None:
        """Write ``folder/summary.json``: ``<span>_seconds``, ``flags``, and the step's own facts."""
        spans = {f"{name}_seconds": round(self._spans.get(name, 0.0), 3) for name in ("startup", "work", "write")}
        write_json(folder / "summary.json", {**spans, "flags": list(flags), **facts})
