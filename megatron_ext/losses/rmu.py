"""Representation misdirection: push the hidden states of the forget set towards one random vector."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from megatron_ext.losses.base import Loss
from megatron_ext.losses.hidden import Coefficient, OnHidden, of_topic, topic_problems
from megatron_ext.schema import Seed

if TYPE_CHECKING:
    from torch import Tensor

    from megatron_ext.model.loss_inputs import LossInputs


class RMU(OnHidden, Loss):
    """``mean_{t,i} (h_i(t) - v_i)^2`` with ``v = c u / |u|``, ``u`` uniform in ``[0, 1)^h`` and drawn once a topic
    (RMU, arXiv 2403.03218, section 4; BLUR, arXiv 2506.08164, eq. 20b). ``h(t)`` leaves the block
    ``trainable_layers.up_to``.

    RMU's own code averages over all positions (``all``, ``token``; padding, which it counts too, is left out here),
    open-unlearning's means to average over those with a label, sequence by sequence (``labelled``, ``sequence``), but
    divides every sequence's sum by every sequence's length (``labelled``, ``sums``).
    """

    name: Literal["rmu"] = "rmu"

    steering: Coefficient = Field(6.5, description="c, the length of the vector; one number, or one for each topic")
    seed: Seed = Field(0, description="of the vectors; each topic has its own")

    def problems(self, topics: Sequence[str]) -> list[str]:
        return topic_problems("steering", self.steering, topics)

    def __call__(self, inputs: LossInputs) -> Tensor:
        u_H = direction(self.seed, inputs.topic, inputs.hidden.size(-1)).to(inputs.hidden.device)
        return self.total(inputs, of_topic(self.steering, inputs.topic) * u_H)


@lru_cache(maxsize=16)
def direction(seed: int, topic: str, size: int) -> Tensor:
    """``u / |u|``: fp32 ``[H]`` with ``H`` = ``size``, on the CPU. The same on every rank and in every run."""
    import torch

    digest = hashlib.sha256(f"{seed}:{topic}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
    u = torch.rand(size, generator=generator)
    return u / u.norm()
