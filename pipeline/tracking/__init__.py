"""What a run measures, logged to a tracker by a process beside it."""
