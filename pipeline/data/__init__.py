"""Benchmark text to token sequences: sources, chat templates, tokenizers, tokenisation, and a cache of the results."""
