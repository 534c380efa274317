"""Follow an experiment's results and log them: ``python -m pipeline.tracking RESULTS SETTINGS UTILITY...``.

``SETTINGS`` is a ``pipeline.tracking.settings.TrackingSettings`` as JSON, and the rest are names of further benchmarks.
``unlearn run`` starts this beside a run. It ends when its standard input does, after a last look.
"""

from __future__ import annotations

import select
import sys
from pathlib import Path

from pipeline.tracking.follow import Follower
from pipeline.tracking.settings import TrackingSettings
from pipeline.tracking.trackers import tracker_of

INTERVAL = 5.0  # seconds between two looks


def main(argv: list[str]) -> None:
    """Log until standard input ends."""
    results, settings = Path(argv[0]), TrackingSettings.model_validate_json(argv[1])
    tracker = tracker_of(settings, results.name, results / "tracking")
    follower = Follower(results, tracker, argv[2:])
    ended = False
    while not ended:
        ended = bool(select.select([sys.stdin], [], [], INTERVAL)[0])
        follower.look()
    tracker.close()


if __name__ == "__main__":
    main(sys.argv[1:])
