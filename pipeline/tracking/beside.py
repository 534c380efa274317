"""Runs the tracker's process beside a workflow; whatever becomes of it, the workflow goes on."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from pipeline.tracking.settings import TrackingSettings

LAST = 60.0  # seconds that a tracker may take to send what it still holds


@contextmanager
def beside(settings: TrackingSettings | None, results: Path, utility: Sequence[str] = ()) -> Iterator[None]:
    """Follow an experiment's results while the body runs.

    Args:
        settings: The tracker's; ``None``: nothing is followed.
        results: The experiment's results. What the tracker prints is in ``logs/tracking.log`` there.
        utility: The experiment's further benchmarks.
    """
    if settings is None:
        yield
        return
    log = results / "logs" / "tracking.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "pipeline.tracking", str(results), settings.model_dump_json(), *utility]
    with log.open("w") as file:
        # A session of its own, so that an interrupt of the run does not cut off what is still to be sent.
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=file, stderr=file, start_new_session=True)
    try:
        yield
    finally:
        assert process.stdin is not None
        process.stdin.close()
        try:
            status = process.wait(LAST)
        except subprocess.TimeoutExpired:
            process.kill()
            status = process.wait()
        if status:
            print(f"tracking: {settings.kind} failed, the run did not; why is in {log}", file=sys.stderr)
