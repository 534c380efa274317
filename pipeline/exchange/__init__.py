"""Evaluations as open-unlearning keeps them, ``TOFU_EVAL.json`` and its like, read and written.

The form is that of locuslab/open-unlearning at d3d7cf9, ``src/evals``: an object of metrics by name, each with
``agg_value`` and, where it is made of examples, ``value_by_index``.
"""
