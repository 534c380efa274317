"""Megatron's gradient buffers and optimizer for one model, as ``runtime.memory`` says, and the step that they take.

What lasts of a parameter under AdamW, in bytes, beside its bf16 weight:

===================================  =========  ======================================================
settings                             gradients  optimizer
===================================  =========  ======================================================
default                              4          12: fp32 weight and moments
``gradients: bf16``                  2          12, and for the step itself 4: an fp32 gradient
``optimizer: offload``               2 or 4     none; 16 in host memory: the same and an fp32 gradient
``optimizer: precision-aware``       2 or 4     6: the weight's lower 16 bits and bf16 moments
``main_weights: false``              2          4: bf16 moments
===================================  =========  ======================================================
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig
from megatron.core.distributed import finalize_model_grads as megatron_finalize
from megatron.core.optimizer import OptimizerConfig, get_megatron_optimizer
from megatron.core.optimizer.cpu_offloading.hybrid_optimizer import HybridDeviceOptimizer
from torch import Tensor

from megatron_ext.config import Optimizer
from megatron_ext.config.lean_memory import MemorySettings
from megatron_ext.distributed import cpu
from megatron_ext.distributed.process_groups import Ranks
from megatron_ext.model.build import LanguageModel

_types = {"fp32": torch.float32, "bf16": torch.bfloat16}


def distributed(model: LanguageModel, ranks: Ranks, memory: MemorySettings) -> DistributedDataParallel:
    """The model in a wrapper that sums gradients over data-parallel ranks and divides by nothing."""
    config = model.config
    config.calculate_per_token_loss = True  # so that it does not divide by the number of ranks
    config.finalize_model_grads_func = _finalize
    settings = DistributedDataParallelConfig(
        grad_reduce_in_fp32=memory.gradients == "fp32",
        use_distributed_optimizer=ranks.layout.distributed_optimizer,
    )
    with cpu.construction(ranks.on_cpu):
        return DistributedDataParallel(config, settings, model)


def build(ddp: DistributedDataParallel, ranks: Ranks, spec: Optimizer, memory: MemorySettings) -> Any:
    """Megatron's optimizer, with torch's one-pass kernels inside where it uses torch's."""
    settings = _settings(ranks, spec, memory)
    with cpu.construction(ranks.on_cpu), cpu.offloading(ranks.on_cpu and settings.optimizer_cpu_offload):
        optimizer = get_megatron_optimizer(settings, [ddp], use_gloo_process_groups=False)
    for _, inner in inner_optimizers(optimizer):
        if isinstance(inner, (torch.optim.Adam, torch.optim.AdamW, torch.optim.SGD)):
            for group in inner.param_groups:
                group["fused"] = True  # other kernels loop over tensors in Python, or hold one more vector
    return optimizer


def _settings(ranks: Ranks, spec: Optimizer, memory: MemorySettings) -> OptimizerConfig:
    sharded, half = ranks.layout.distributed_optimizer, ranks.dtype == torch.bfloat16
    more: dict[str, Any] = {}
    if memory.optimizer == "offload":
        more = {"optimizer_cpu_offload": True, "optimizer_offload_fraction": 1.0, "pin_cpu_grads": not ranks.on_cpu}
    elif memory.optimizer == "precision-aware":
        more = {"use_precision_aware_optimizer": True, "exp_avg_dtype": torch.bfloat16}
        more |= {"exp_avg_sq_dtype": torch.bfloat16, "main_grads_dtype": _types[memory.gradients]}
    settings = OptimizerConfig(
        optimizer="adam" if spec.name == "adamw" else "sgd",
        lr=spec.learning_rate,
        weight_decay=spec.weight_decay,
        adam_beta1=spec.betas[0],
        adam_beta2=spec.betas[1],
        adam_eps=spec.epsilon,
        sgd_momentum=0.0,
        clip_grad=0.0,  # clipping happens on the direction, whose norm is known from the inner products
        bf16=half and (memory.main_weights or sharded),  # else its optimizer for weights that need no copy
        params_dtype=ranks.dtype,
        use_distributed_optimizer=sharded,
        **more,
    )
    if memory.optimizer == "offload" or (sharded and not memory.main_weights):
        # Its distributed optimizer then gives weights and gradients to the inner one as they are, and copies nothing
        # back. It derives this from ``use_precision_aware_optimizer``, which it refuses without Transformer Engine.
        settings.use_precision_aware_optimizer_no_fp8_or_ds_fp8 = True
    return settings


def inner_optimizers(optimizer: Any) -> Iterator[tuple[int, torch.optim.Optimizer]]:
    """The optimizers inside megatron-core's; a rank that trains none of its parameters has none."""
    for number, wrapper in enumerate(optimizer.chained_optimizers):
        if wrapper.optimizer is not None:
            yield number, wrapper.optimizer


def step(optimizer: Any, memory: MemorySettings) -> None:
    """Move the weights by the gradient in the buffers; copies of it that were made for this are dropped.

    Megatron's own ``step()`` would also compute the gradient's norm, with collectives of its own.
    """
    optimizer.prepare_grads()
    if not memory.main_weights:
        for parameter in _parameters(optimizer):
            if parameter.grad is None:  # a shard, whose gradient megatron-core puts where torch does not look
                parameter.grad = parameter.decoupled_grad  # type: ignore[attr-defined] # megatron-core's own
    optimizer.step_with_ready_grads()
    if memory.gradients == "bf16":
        optimizer.zero_grad()
        for parameter in _parameters(optimizer):
            parameter.grad = None


def weights_follow(ranks: Ranks, memory: MemorySettings) -> bool:
    """Whether the trained weights are rounded from fp32 ones that the optimizer keeps."""
    kept = memory.main_weights and memory.optimizer != "precision-aware"
    return ranks.dtype != torch.float32 and kept


def restored(optimizer: Any, ddp: DistributedDataParallel, ranks: Ranks, memory: MemorySettings) -> None:
    """Do what ends every step, after the inner optimizers' state was put back: round their weights to the model's, and
    with sharded ones all-gather them over data-parallel ranks."""
    for wrapper in optimizer.chained_optimizers:
        inner: Any = wrapper.optimizer
        if isinstance(inner, HybridDeviceOptimizer):
            inner._sync_hdo_state_to_sub_optimizers()
            with torch.no_grad():
                for parameter, main in inner.param_to_fp32_param.items():
                    parameter.copy_(main)
        elif inner is not None and weights_follow(ranks, memory):
            wrapper._copy_main_params_to_model_params()
    if ranks.layout.distributed_optimizer:
        ddp.start_param_sync(force_sync=True)


def _parameters(optimizer: Any) -> Iterator[Tensor]:
    for _, inner in inner_optimizers(optimizer):
        for group in inner.param_groups:
            yield from group["params"]


def _finalize(model: list[Any], num_tokens: Tensor | None = None, **kwargs: Any) -> None:
    """Megatron's reduction of gradients, without its division by a token count: losses are divided already."""
    megatron_finalize(model, None, **kwargs)
