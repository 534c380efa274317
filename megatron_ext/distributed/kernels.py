"""Whose kernels compute on a GPU: torch's, of which some are turned off, or Transformer Engine's."""

from __future__ import annotations

import importlib
import importlib.metadata
import os
from typing import Any

from megatron_ext.config import RuntimeSettings

TRANSFORMER_ENGINE = "transformer_engine"
FITTING = (2, 9), (2, 12)  # the first version that megatron-core 0.16 works with, and the first that it does not


def choose(spec: RuntimeSettings) -> None:
    """Tell torch which kernels a run on a GPU may use; call before the first of them runs.

    cuDNN's attention is never one of them. torch prefers it on recent GPUs, where it makes a plan for every new shape:
    half a second each, in training for every width of a micro-batch and in decoding for every token.

    Args:
        spec: ``kernels`` and ``deterministic``.

    Raises:
        ValueError: Transformer Engine is asked for, and is not installed in a version that fits.
    """
    import torch

    if spec.kernels == "te" and (problem := _transformer_engine_problem()):
        raise ValueError(f"kernels: 'te' needs Transformer Engine {_range()}, and {problem}; allowed here: 'torch'")
    torch.backends.cuda.enable_cudnn_sdp(False)
    if spec.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS reads it when it is first used
        os.environ.setdefault("NVTE_ALLOW_NONDETERMINISTIC_ALGO", "0")
        # Not as warnings only: torch's attention takes its repeatable backward pass only under errors.
        torch.use_deterministic_algorithms(True)
        settings: Any = torch.utils.deterministic  # mypy sees no attribute of the object that this module is
        settings.fill_uninitialized_memory = False  # a search for mistakes, at a pass over memory


def use_torch_optimizers() -> None:
    """Make megatron-core use torch's optimizers, also where those that it prefers are installed."""
    import torch

    optimizer: Any = importlib.import_module("megatron.core.optimizer")
    optimizer.Adam, optimizer.SGD = torch.optim.AdamW, torch.optim.SGD
    optimizer.USING_PYTORCH_OPTIMIZER = True


def _transformer_engine_problem() -> str | None:
    """Why Transformer Engine cannot be used, or None."""
    try:
        version = importlib.metadata.version(TRANSFORMER_ENGINE)
    except importlib.metadata.PackageNotFoundError:
        return "it is not installed"
    major, minor, *_ = version.split(".")
    first, after = FITTING
    if not first <= (int(major), int(minor)) < after:
        return f"{version} is installed"
    return None


def _range() -> str:
    first, after = (".".join(map(str, version)) for version in FITTING)
    return f">={first},<{after}"
