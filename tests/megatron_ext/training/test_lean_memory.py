"""``runtime.memory``: what each setting computes, alone and over sharded ranks; runs go on from their states."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from megatron_ext.config import Layout, Optimizer, Runtime
from megatron_ext.config.lean_memory import MemorySettings
from megatron_ext.specs import TrainSpec
from megatron_ext.training.optimizer import inner_optimizers
from megatron_ext.updates.blur import Blur
from tests.support.distributed import run_ranks
from tests.support.worlds import CONFIG

SHARDED = {"data": 2, "distributed_optimizer": True}
KINDS: dict[str, dict[str, Any]] = {
    "default": {},
    "offload": {"optimizer": "offload"},
    "bf16 gradients": {"gradients": "bf16"},
    "both": {"gradients": "bf16", "optimizer": "offload"},
    "no main weights": {"gradients": "bf16", "main_weights": False},
}
OPTIMIZER = Optimizer(learning_rate=1e-3, weight_decay=0.01)


def made(ranks: Any, kind: str) -> Any:
    from megatron_ext.checkpoint import reading
    from megatron_ext.training.trainer import Trainer

    model = reading.initialise(CONFIG, ranks, seed=3)
    return Trainer(model, ranks, OPTIMIZER, 2, memory=MemorySettings(**KINDS[kind]))


def terms() -> list[Any]:
    from megatron_ext.data.collate import SequenceDataset
    from megatron_ext.data.sequences import Sequences
    from megatron_ext.losses.ga import GA
    from megatron_ext.losses.nll import NLL
    from megatron_ext.training.loss_terms import LossTerm

    sets = [Sequences.pack([(list(range(start + i, start + i + 12)), 1) for i in range(4)]) for start in (2, 30)]
    losses = (("forget_loss", GA(), sets[0]), ("retain_loss", NLL(), sets[1]))
    return [LossTerm(name, loss, SequenceDataset([rows]), list(range(4))) for name, loss, rows in losses]


def taken(trainer: Any, steps: int) -> list[float]:
    """Take steps; the norms of their directions."""
    batch = terms()
    return [trainer.step(batch, Blur(gamma=0.5), 1e-3).update_norm for _ in range(steps)]


def weights(trainer: Any) -> list[Any]:
    return [p.detach().clone() for p in trainer.model.parameters()]


def alike(a: list[Any], b: list[Any]) -> bool:
    return all(x.equal(y) for x, y in zip(a, b, strict=True))


def on_two_ranks(folder: Path) -> dict[str, Any]:
    """Of each kind: norms and weights of four steps, and whether they are the same with a state in between."""
    from megatron_ext.distributed import process_groups
    from megatron_ext.training.resume import Resume

    found: dict[str, Any] = {}
    runtime = Runtime(device="cpu", precision="bf16", layout=Layout(**SHARDED), timeout_seconds=60)
    with process_groups.start(runtime) as ranks:
        for kind in KINDS:
            trainer, again = made(ranks, kind), made(ranks, kind)
            norms = taken(trainer, 2)
            first = Resume(folder / kind, {}, trainer)
            first.log.open(0)
            for _ in range(2):
                first.log.write({})
            first.save(2)
            norms += taken(trainer, 2)
            Resume(folder / kind, {}, again).restore()
            same = taken(again, 2) == norms[2:] and alike(weights(trainer), weights(again))
            found[kind] = {"norms": norms, "weights": [w.float().numpy() for w in weights(trainer)], "same": same}
    return found


@pytest.mark.slow
def test_kinds_over_sharded_ranks(tmp_path: Path) -> None:
    """An offloaded optimizer takes the same steps to the bit, bf16 gradients nearly; all go on from a state."""
    for found in run_ranks(on_two_ranks, 2, tmp_path, timeout=120):
        assert all(kind["same"] for kind in found.values()), {name: kind["same"] for name, kind in found.items()}
        for one, other in (("default", "offload"), ("bf16 gradients", "both")):
            assert found[one]["norms"] == found[other]["norms"]
            assert all(map(np.array_equal, found[one]["weights"], found[other]["weights"]))
        exact = found["default"]["norms"]
        for name in ("bf16 gradients", "no main weights"):
            assert found[name]["norms"] == pytest.approx(exact, rel=0.02) and found[name]["norms"] != exact


@pytest.mark.parametrize("layout", [{}, {"distributed_optimizer": True}])
def test_without_main_weights_a_step_is_that_of_torch_on_bf16_weights(layout: dict[str, Any], alone: Any) -> None:
    """As a loop with bf16 parameters and ``torch.optim.AdamW`` computes it, to the bit; and no fp32 tensor is kept."""
    import torch

    ranks = dataclasses.replace(alone, dtype=torch.bfloat16, layout=Layout(**layout))
    trainer = made(ranks, "no main weights")
    plain = [torch.nn.Parameter(w) for w in weights(trainer)]
    decayed = [p for p in plain if p.dim() > 1]
    groups = [{"params": decayed}, {"params": [p for p in plain if p.dim() == 1], "weight_decay": 0.0}]
    reference = torch.optim.AdamW(groups, lr=1e-3, weight_decay=0.01, fused=True)
    for _ in range(3):
        taken(trainer, 1)
        for parameter, own in zip(plain, trainer.model.parameters(), strict=True):
            parameter.grad = own.main_grad.clone()
        reference.step()
        assert alike(weights(trainer), plain)
    for _, inner in inner_optimizers(trainer.optimizer):
        kept = [t for state in inner.state.values() for t in state.values() if t.numel() > 1]
        assert kept and all(t.dtype == torch.bfloat16 for t in kept)


@pytest.mark.parametrize(
    ("settings", "runtime", "expected"),
    [
        ({"gradients": "bf16"}, {"precision": "fp32"}, "memory: needs precision: bf16"),
        ({"optimizer": "precision-aware"}, {}, "memory: optimizer: 'precision-aware' is Transformer Engine's"),
        ({"main_weights": False}, {}, "memory: main_weights: false needs gradients: bf16"),
        ({"gradients": "bf16", "main_weights": False, "optimizer": "offload"}, {}, "memory: main_weights: false with"),
        ({"gradients": "bf16", "main_weights": False}, {"kernels": "te"}, "memory: main_weights: false needs kernels"),
    ],
)
def test_what_does_not_go_together(settings: dict[str, Any], runtime: dict[str, Any], expected: str) -> None:
    with pytest.raises(ValidationError, match=re.escape(expected)):
        Runtime.model_validate({"precision": "bf16", "memory": settings, **runtime})


@pytest.mark.parametrize(
    ("optimizer", "layout", "expected"),
    [("sgd", {}, "needs the optimizer adamw, given 'sgd'"), ("adamw", {}, "needs layout.distributed_optimizer: true")],
)
def test_an_offloaded_optimizer_is_a_distributed_adamw(optimizer: str, layout: dict[str, Any], expected: str) -> None:
    runtime = {"precision": "bf16", "memory": {"optimizer": "offload"}, "layout": layout}
    with pytest.raises(ValidationError, match=f"runtime.memory.optimizer: 'offload' {expected}"):
        TrainSpec.model_validate(
            {
                "output": "out",
                "model": {"checkpoint": "model"},
                "data": {"rows": 1.0},
                "steps": 1,
                "batching": {"global_batch": 1, "micro_batch": 1},
                "optimizer": {"name": optimizer, "learning_rate": 1e-3},
                "runtime": runtime,
            }
        )
