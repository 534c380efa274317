"""Ranks and process groups, and functions of logits whose vocabulary is spread over ranks."""
