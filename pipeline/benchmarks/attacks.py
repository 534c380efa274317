"""Attacks that tell what a model was trained on from what it was not."""

from __future__ import annotations

from typing import Literal

Attack = Literal["loss", "zlib", "reference", "gradnorm", "min_k", "min_k_plus_plus"]
ATTACKS: dict[Attack, tuple[str, str, str]] = {  # title, score, source
    "loss": ("LOSS", "the {unit}'s loss", "Yeom et al. 2018 (arXiv 1709.01604)"),
    "zlib": ("ZLib", "the loss over the bytes of the compressed {unit}", "Carlini et al. 2021 (arXiv 2012.07805)"),
    "reference": ("Reference", "the loss less retrain's", "Carlini et al. 2021 (arXiv 2012.07805)"),
    "gradnorm": (
        "GradNorm",
        "the 2-norm of the loss's gradient, averaged over parameter tensors,",
        "Wang et al. 2024 (arXiv 2402.17012)",
    ),
    "min_k": (
        "Min-40%",
        "minus the mean of the lowest 40 % of the tokens' log-probabilities",
        "Shi et al. 2023 (arXiv 2310.16789)",
    ),
    "min_k_plus_plus": (
        "Min-40%++",
        "minus the mean of the lowest 40 % of the tokens' standardised log-probabilities",
        "Zhang et al. 2024 (arXiv 2404.02936)",
    ),
}
