"""What makes megatron-core run on CPU and gloo: the one module that knows it assumes CUDA.

megatron-core names the CUDA device in three ways: ``torch.cuda.current_device()``, the literal ``device="cuda"``, and
the type strings ``torch.cuda.*Tensor``. Each is answered where it is asked: the first by a function that returns the
CPU device, the second by giving the few modules with such literals a ``torch`` whose factories put "cuda" on the CPU
(not by a ``TorchFunctionMode``, which would slow down every operation), the third while objects are built.
"""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Iterator
from typing import Any

import torch

_MODULES_WITH_LITERALS = (
    "megatron.core.pipeline_parallel.schedules",
    "megatron.core.optimizer.optimizer",
    "megatron.core.optimizer.distrib_optimizer",
    "megatron.core.optimizer.clip_grads",
    "megatron.core.transformer.utils",
)
_OFFLOADING = "megatron.core.optimizer.cpu_offloading.hybrid_optimizer"  # works on streams
# What is replaced in torch, its types do not foresee.
_torch: Any = torch
_FACTORIES = ("tensor", "zeros", "ones", "empty", "full", "arange", "zeros_like", "empty_like")


class _CpuTorch:
    """The torch module, except that tensors asked for on "cuda" are made on the CPU."""

    def __getattr__(self, name: str) -> Any:
        value = getattr(torch, name)
        if name in _FACTORIES:
            value = _on_cpu(value)
        self.__dict__[name] = value
        return value


class _NoStream:
    """A CUDA stream, an event of it, and torch's module of them, where everything happens in order anyway."""

    def __getattr__(self, name: str) -> Any:
        return lambda *_, **__: self

    def __enter__(self) -> None:
        """Nothing is to be done."""

    def __exit__(self, *_: object) -> None:
        """Nothing is to be done."""


def _on_cpu(factory: Any) -> Any:
    def make(*args: Any, **kwargs: Any) -> Any:
        if "cuda" in str(kwargs.get("device", "")):
            kwargs["device"] = "cpu"
        return factory(*args, **kwargs)

    return make


def install() -> None:
    """Make this process's megatron-core use the CPU; call once, before a model is built. Idempotent."""
    compile_ = torch.compile
    _torch.compile = _eager
    try:
        # Its decorators would load torch's compiler, for fused kernels that a CPU never calls: a third of the start-up.
        importlib.import_module("megatron.core")
    finally:
        _torch.compile = compile_
    _torch.cuda.current_device = lambda: torch.device("cpu")
    _torch.cuda.synchronize = lambda *_: None
    for name in _MODULES_WITH_LITERALS:
        module: Any = importlib.import_module(name)
        module.torch = _CpuTorch()
    offloading_: Any = importlib.import_module(_OFFLOADING)
    offloading_.torch = _CpuTorch()
    offloading_.torch.cuda = _NoStream()


def _eager(function: Any = None, **_: Any) -> Any:
    return function if function is not None else _eager


@contextlib.contextmanager
def construction(active: bool) -> Iterator[None]:
    """While models and optimizers are built on the CPU: ``Tensor.cuda()`` is the identity, and ``Tensor.type()``
    answers with the CUDA names that megatron-core's optimizers sort parameters by."""
    if not active:
        yield
        return
    cuda, kind = torch.Tensor.cuda, torch.Tensor.type

    def cuda_name(tensor: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        answer = kind(tensor, *args, **kwargs)
        return answer.replace("torch.", "torch.cuda.", 1) if isinstance(answer, str) else answer

    _torch.Tensor.cuda = lambda tensor, *_, **__: tensor
    _torch.Tensor.type = cuda_name
    try:
        yield
    finally:
        _torch.Tensor.cuda = cuda
        _torch.Tensor.type = kind


@contextlib.contextmanager
def offloading(active: bool) -> Iterator[None]:
    """While an offloaded optimizer is built on the CPU: bf16 tensors pass for a GPU's, and fp32 copies of them for the
    host's, whose pages are not locked."""
    if not active:
        yield
        return
    pin = torch.Tensor.pin_memory
    _torch.Tensor.is_cuda = property(lambda tensor: tensor.dtype == torch.bfloat16)
    _torch.Tensor.pin_memory = lambda tensor, *_: tensor
    try:
        yield
    finally:
        del _torch.Tensor.is_cuda  # torch.Tensor has inherited its own
        _torch.Tensor.pin_memory = pin
