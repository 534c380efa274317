"""Mixtral."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from megatron_ext.model.families.base import Experts
from megatron_ext.model.families.mistral import Mistral
from megatron_ext.model.families.sizes import check_experts, check_theta


class Mixtral(Mistral):
    """Mixtral, a mixture of experts in every layer."""

    architectures = ("MixtralForCausalLM",)
    torch_only = "mixtures of experts"
    window = None

    @classmethod
    def check(cls, config: Mapping[str, Any]) -> None:
        check_experts(config, ("num_local_experts",), "num_experts_per_tok", "intermediate_size")
        check_theta(config)

    @classmethod
    def experts(cls, config: Mapping[str, Any]) -> Experts:
        return Experts(
            count=config["num_local_experts"],
            chosen=config["num_experts_per_tok"],
            width=config["intermediate_size"],
            normalised=True,
            router="block_sparse_moe.gate.weight",
            gate="block_sparse_moe.experts.{}.w1.weight",
            up="block_sparse_moe.experts.{}.w3.weight",
            down="block_sparse_moe.experts.{}.w2.weight",
        )
