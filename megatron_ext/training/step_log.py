"""The log of a run's steps, or of its measurements, which goes on where the run does."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from megatron_ext.atomic_files import write_text


class StepLog:
    """Lines of JSON, one an optimizer step or one a measurement, appended as they happen; cut back on resume."""

    def __init__(self, path: Path, active: bool) -> None:
        self.path, self.active = path, active
        self._file: Any = None

    def open(self, count: int) -> None:
        """Go on after the first ``count`` lines."""
        if not self.active:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        lines = self.path.read_bytes().splitlines(keepends=True)[:count] if self.path.exists() else []
        if len(lines) != count:
            raise RuntimeError(
                f"{self.path} has {len(lines)} lines where the state needs {count}; delete {self.path.parent}"
            )
        write_text(self.path, b"".join(lines).decode("utf-8"))
        self._file = self.path.open("a")

    def write(self, record: dict[str, Any]) -> None:
        """Append a line."""
        if self.active:
            self._file.write(json.dumps(record) + "\n")
            self._file.flush()

    def count(self) -> int:
        """The lines that there are, up to the first that is none of a log."""
        found = 0
        for line in self.path.read_bytes().splitlines(keepends=True) if self.path.exists() else ():
            try:
                whole = line.endswith(b"\n") and isinstance(json.loads(line), dict)
            except (ValueError, RecursionError):
                whole = False
            if not whole:
                break
            found += 1
        return found

    def flush(self) -> None:
        """Have every line on disk."""
        if self.active:
            self._file.flush()
            os.fsync(self._file.fileno())

    def close(self) -> None:
        """Write no more lines."""
        if self.active:
            self.flush()
            self._file.close()
