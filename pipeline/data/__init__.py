"""Benchmark text and what becomes of it: rows, templates, tokens, and the folder that the prepare step writes."""
