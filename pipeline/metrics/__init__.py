"""Metrics as pure functions on numbers and strings; none knows a benchmark, a model or a file."""
