"""One-pass kernels against plain passes: in Triton's interpreter, which needs no GPU, where Triton is installed."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from megatron_ext.training import vector_kernels

ROOT = Path(__file__).parents[3]
PROGRAM = """
import json, torch
from megatron_ext.training import vector_kernels as fused
found = {"usable": fused.usable(), "products": 0.0, "combined": 0.0}
for count in (1, fused.BLOCK, 2 * fused.BLOCK + 3):
    a, b = torch.randn(count), 1e-12 * torch.randn(count)  # the squares of b vanish in fp32
    gram = torch.stack([x.double() @ y.double() for x, y in ((a, a), (a, b), (b, b))])
    lengths = gram[[0, 0, 2]].sqrt() * gram[[0, 2, 2]].sqrt()
    found["products"] = max(found["products"], float(((fused.products(a, b) - gram).abs() / lengths).max()))
    wanted = 0.999 * a + 0.5 * b
    fused.combine(a, 0.999, b, 0.5)
    found["combined"] = max(found["combined"], float((a - wanted).abs().max()))
print(json.dumps(found))
"""


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")
def test_one_pass_gives_what_plain_passes_give() -> None:
    """In a process of its own, because Triton decides at its import whether it interprets."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        cwd=ROOT,
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["usable"], done.stderr
    assert found["products"] < 1e-12 and found["combined"] < 1e-6


@pytest.fixture
def asked_anew() -> Any:
    vector_kernels.usable.cache_clear()
    yield
    vector_kernels.usable.cache_clear()


@pytest.mark.usefixtures("asked_anew")
def test_kernels_that_cannot_be_built_are_not_used(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def no_compiler(*_: Any) -> Any:
        raise RuntimeError("Failed to find C compiler")

    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: object())
    monkeypatch.setattr(vector_kernels, "products", no_compiler)
    assert not vector_kernels.usable()
    assert "plain kernels instead" in capsys.readouterr().err


@pytest.mark.usefixtures("asked_anew")
def test_kernels_that_compute_something_else_are_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: object())
    monkeypatch.setattr(vector_kernels, "products", lambda a, b: torch.stack([a @ a, a @ b, b @ b + 1]))
    monkeypatch.setattr(vector_kernels, "combine", lambda *_: None)
    assert not vector_kernels.usable()


def test_gradients_take_one_pass_where_kernels_are_usable(alone: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """What ``GradientSpace`` makes of the kernels, here stand-ins in plain torch: which pieces, and which sums."""
    from megatron_ext.checkpoint import reading
    from megatron_ext.config import Optimizer, Runtime
    from megatron_ext.training.gradients import GradientSpace
    from megatron_ext.training.trainer import Trainer
    from tests.support import worlds

    model = reading.initialise(worlds.CONFIG, alone, 0, training=Runtime())
    space = Trainer(model, alone, Optimizer(learning_rate=1e-3), 1).accumulator.space
    for piece in space.held:
        piece.normal_()
    other = space.copy()
    for piece in space.held:
        piece.normal_()
    held = [piece.clone() for piece in space.held]
    plain = space.products([other, space.held])
    space.combine(0.9, other, 0.3)
    combined = [piece.clone() for piece in space.held]
    space.hold(held)
    calls = []

    def products(a: Any, b: Any) -> Any:
        calls.append("products")
        return torch.stack([x.double() @ y.double() for x, y in ((a, a), (a, b), (b, b))])

    def combine(held: Any, scale: float, other: Any, other_scale: float) -> None:
        calls.append("combine")
        held.mul_(scale).add_(other, alpha=other_scale)

    monkeypatch.setattr(GradientSpace, "_fused", True)
    monkeypatch.setattr(vector_kernels, "products", products)
    monkeypatch.setattr(vector_kernels, "combine", combine)
    torch.testing.assert_close(space.products([other, space.held]), plain, rtol=1e-12, atol=0)
    space.combine(0.9, other, 0.3)
    assert all(given.equal(wanted) for given, wanted in zip(space.held, combined, strict=True))
    assert calls == ["products"] * sum(len(ranges) for ranges in space._counted) + ["combine"]
    assert "products" in calls
