"""Optimizer steps along the directions of update rules, with exact resuming."""
