"""Cached log-probabilities under the model before unlearning."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from megatron_ext.data.sequences import Sequences, load_arrays

FILE = "reference.npz"


def load_reference(path: Path, sequences: Sequences, fingerprint: str) -> np.ndarray:
    """fp64 ``[n]``: the log-probability of each of ``sequences`` under the model with this fingerprint.

    Raises ``ValueError``, with both hashes, for a file made of other data or with another model.
    """
    found = load_arrays(path, ("data_sha256", "model_fingerprint", "log_probs"))
    for key, wanted in (("data_sha256", sequences.sha256()), ("model_fingerprint", fingerprint)):
        if str(found[key]) != wanted:
            raise ValueError(f"{path}: {key} is {found[key]}, but this run's is {wanted}")
    return found["log_probs"]
