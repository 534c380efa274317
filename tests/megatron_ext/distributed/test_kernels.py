"""Whose kernels a run uses; what needs a GPU to run is in tests/gpu."""

from __future__ import annotations

import importlib
import importlib.metadata
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from megatron_ext.config import Runtime
from megatron_ext.distributed import kernels


@pytest.fixture(autouse=True)
def as_it_was(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What ``choose`` sets belongs to the process."""
    for name in ("CUBLAS_WORKSPACE_CONFIG", "NVTE_ALLOW_NONDETERMINISTIC_ALGO"):
        monkeypatch.setenv(name, "x")  # so that it is restored, also where it was not set
        monkeypatch.delenv(name)
    cudnn = torch.backends.cuda.cudnn_sdp_enabled()
    yield
    torch.backends.cuda.enable_cudnn_sdp(cudnn)
    torch.use_deterministic_algorithms(False)
    torch.utils.deterministic.fill_uninitialized_memory = True


def installed(monkeypatch: pytest.MonkeyPatch, version: str | None) -> None:
    def found(name: str) -> str:
        assert name == kernels.TRANSFORMER_ENGINE
        if version is None:
            raise importlib.metadata.PackageNotFoundError(name)
        return version

    monkeypatch.setattr(importlib.metadata, "version", found)


def test_attention_is_never_cudnns() -> None:
    torch.backends.cuda.enable_cudnn_sdp(True)
    kernels.choose(Runtime())
    assert not torch.backends.cuda.cudnn_sdp_enabled()
    assert not torch.are_deterministic_algorithms_enabled()


def test_deterministic_kernels_are_asked_for_as_errors() -> None:
    """Under warnings only, torch's memory-efficient attention keeps a backward pass that does not repeat."""
    kernels.choose(Runtime(deterministic=True))
    assert torch.are_deterministic_algorithms_enabled()
    assert not torch.is_deterministic_algorithms_warn_only_enabled()
    assert kernels.os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"


@pytest.mark.parametrize(
    ("version", "said"), [(None, "it is not installed"), ("2.8.1", "2.8.1 is installed"), ("2.12.0", "2.12.0 is")]
)
def test_transformer_engine_is_refused_where_it_does_not_fit(
    version: str | None, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed(monkeypatch, version)
    with pytest.raises(ValueError, match=rf"kernels: 'te' .*>=2.9,<2.12, and {said}.*allowed here: 'torch'"):
        kernels.choose(Runtime(kernels="te", precision="bf16"))


@pytest.mark.parametrize("version", ["2.9.0", "2.10.0+769ed778", "2.11"])
def test_transformer_engine_is_taken_where_it_fits(version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    installed(monkeypatch, version)
    kernels.choose(Runtime(kernels="te", precision="bf16"))


def test_torch_kernels_bring_torch_optimizers_whatever_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    optimizer: Any = importlib.import_module("megatron.core.optimizer")
    for name, value in (("Adam", object), ("SGD", object), ("USING_PYTORCH_OPTIMIZER", False)):
        monkeypatch.setattr(optimizer, name, value)  # as Transformer Engine's or Apex's are
    kernels.use_torch_optimizers()
    assert (optimizer.Adam, optimizer.SGD) == (torch.optim.AdamW, torch.optim.SGD)
    assert optimizer.USING_PYTORCH_OPTIMIZER
