"""Metrics as pure functions of numbers and texts. None of them knows a benchmark, a model or a file."""
