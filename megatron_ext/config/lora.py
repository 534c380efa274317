"""Low-rank adapters: which of a model's matrices have them, and how large they are (LoRA, arXiv 2106.09685).

This module imports neither torch nor megatron-core, so that planning can read it on a machine that has neither.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from megatron_ext.config import TrainableLayers
from megatron_ext.schema import Strict

Target = Literal[
    "q_proj", "k_proj", "v_proj", "qkv_proj", "o_proj", "gate_proj", "up_proj", "gate_up_proj", "down_proj"
]  # fmt: skip
# The checkpoint's matrices in each of Megatron's linear layers, in order; and those of families that store them fused.
MATRICES: dict[str, tuple[str, ...]] = {
    "linear_qkv": ("q_proj", "k_proj", "v_proj"),
    "linear_proj": ("o_proj",),
    "linear_fc1": ("gate_proj", "up_proj"),
    "linear_fc2": ("down_proj",),
}
FUSED = {**MATRICES, "linear_qkv": ("qkv_proj",), "linear_fc1": ("gate_up_proj",)}
# Where ``TrainableLayers.target_modules`` are.
LINEAR = {"qkv_proj": "linear_qkv", "o_proj": "linear_proj", "gate_up_proj": "linear_fc1", "down_proj": "linear_fc2"}
ATTENTION = ("linear_qkv", "linear_proj")


class Lora(Strict):
    """Train adapters alone: a matrix ``W`` becomes ``W + alpha / rank * B A``, where ``A`` has ``rank`` rows and ``B``
    as many columns. ``B`` begins as zero. There is no dropout: rules compare gradients of one batch."""

    rank: int = Field(ge=1)
    alpha: float = Field(gt=0, allow_inf_nan=False)
    targets: list[Target] | None = Field(
        None, min_length=1, description="matrices of each decoder block; default: all, or those of 'trainable_layers'"
    )

    @property
    def scale(self) -> float:
        """What the product of the two matrices is multiplied by."""
        return self.alpha / self.rank

    def matrices(self, fused: bool, trainable_layers: TrainableLayers | None = None) -> dict[str, tuple[str, ...]]:
        """By Megatron's linear layer the checkpoint's matrices in it that have an adapter.

        Args:
            fused: Whether the checkpoint stores queries, keys and values as one matrix, and gate and up.
            trainable_layers: Which part of the model is built.
        """
        known = FUSED if fused else MATRICES
        if trainable_layers is not None:
            return {linear: known[linear] for linear in (LINEAR[name] for name in trainable_layers.target_modules)}
        if self.targets is None:
            return known
        found = {linear: tuple(name for name in names if name in self.targets) for linear, names in known.items()}
        return {linear: names for linear, names in found.items() if names}

    def problems(self, trainable_layers: TrainableLayers | None, kernels: str) -> list[str]:
        """What does not fit together in a run's settings: messages that begin with the key."""
        found = []
        if kernels == "te":
            found.append("runtime.kernels: 'te' fuses norms into the layers that adapters lie beside; allowed: 'torch'")
        if trainable_layers is not None and self.targets is not None:
            found.append("lora.targets: is given, but 'trainable_layers' names matrices already; allowed: null")
        return found

    def model_problems(
        self, fused: bool, experts: bool, latent: bool, trainable_layers: TrainableLayers | None
    ) -> list[str]:
        """What does not fit the model: messages that begin with the key."""
        known = FUSED if fused else MATRICES
        if trainable_layers is not None:
            fitting = [name for name, linear in LINEAR.items() if linear in ATTENTION[latent:]]
            inside = [name for name in trainable_layers.target_modules if experts and LINEAR[name] not in ATTENTION]
            message = f"experts have no adapters here, and 'trainable_layers' names {', '.join(inside)}"
            return [f"lora: {message}; allowed: {', '.join(fitting)}"] if inside else []
        here = ATTENTION if experts else tuple(known)
        allowed = [name for linear in here if not (latent and linear == "linear_qkv") for name in known[linear]]
        if experts and self.targets is None:
            return [f"lora.targets: experts have no adapters here; name others; allowed: {', '.join(allowed)}"]
        wrong = [name for name in self.targets or [] if name not in allowed]
        what = "a mixture of experts has no adapters at" if experts else "the model has no matrices"
        return [f"lora.targets: {what} {', '.join(wrong)}; allowed: {', '.join(allowed)}"] if wrong else []

    @model_validator(mode="after")
    def _different(self) -> Lora:
        if self.targets is not None and len(set(self.targets)) < len(self.targets):
            raise ValueError(f"targets: {self.targets} names one twice")
        return self
