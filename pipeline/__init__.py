"""Benchmarks, files and reports of the unlearning workflow; nothing of ranks or gradients."""
