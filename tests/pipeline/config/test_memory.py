"""Planned bytes beside storages of real ranks: weights, gradients, optimizer state and the vectors of every rule."""

from __future__ import annotations

from typing import Any
from unittest import mock

import numpy as np
import pytest

from megatron_ext.config import Batching, Optimizer, Runtime
from megatron_ext.config.lora import Lora
from megatron_ext.updates import Products, Rule
from megatron_ext.updates.blur import Blur
from megatron_ext.updates.gru import GRU
from megatron_ext.updates.ngdiff import AutomaticRate, NGDiff
from megatron_ext.updates.ofmu import OFMU
from megatron_ext.updates.pcgrad import PCGrad
from megatron_ext.updates.primal_dual import PrimalDual
from megatron_ext.updates.sago import SAGO
from megatron_ext.updates.sam import SAM
from megatron_ext.updates.weighted_sum import WeightedSum
from pipeline.config.memory import Memory, lasting
from pipeline.config.sizing import Shape
from pipeline.config.workload import Workload
from tests.support.distributed import run_ranks
from tests.support.worlds import CONFIG

LAYOUTS: list[dict[str, Any]] = [
    {"tensor": 2, "pipeline": 2},
    {"tensor": 2, "data": 2},
    {"tensor": 2, "data": 2, "distributed_optimizer": True},
    {"pipeline": 2, "data": 2, "distributed_optimizer": True},
]
KINDS: list[dict[str, Any]] = [
    {"gradients": "bf16"},
    {"gradients": "bf16", "optimizer": "offload"},
    {"gradients": "bf16", "main_weights": False},
]
# Every split in both precisions; what saves memory at one of them.
CASES: list[tuple[dict[str, Any], str, dict[str, Any]]] = [
    *((layout, precision, {}) for layout in LAYOUTS for precision in ("fp32", "bf16")),
    *((LAYOUTS[2], "bf16", kind) for kind in KINDS),
]
SIZES: list[dict[str, Any]] = [
    {**CONFIG, "num_hidden_layers": 2},
    {**CONFIG, "hidden_size": 96, "head_dim": 24, "num_hidden_layers": 4, "tie_word_embeddings": False},
    {**CONFIG, "hidden_size": 128, "intermediate_size": 344, "num_hidden_layers": 6, "tie_word_embeddings": True},
]
RULES: list[Rule] = [
    WeightedSum(),
    Blur(gamma=0.5),
    NGDiff(),
    NGDiff(automatic_rate=AutomaticRate(every=1, lowest=1e-7, highest=1.0)),
    OFMU(beta=1.0, penalty=0.1, inner_steps=1, difference=1e-4),
    PCGrad(),
    PCGrad(scope="tensor"),
    PrimalDual(dual=0.5, dual_rate=0.3, epsilon=4.0),
    SAGO(),
    GRU(lowest_cosine=-0.3),
    SAM(rho=0.5),
]


# Whole models, and one whose adapters alone are trained.
MODELS: list[tuple[dict[str, Any], Lora | None]] = [
    *((size, None) for size in SIZES),
    (SIZES[1], Lora(rank=8, alpha=8.0, targets=["q_proj", "v_proj", "o_proj", "up_proj", "down_proj"])),
]


def models(precision: str, kind: dict[str, Any]) -> list[tuple[dict[str, Any], Lora | None]]:
    """All of them in bf16; two in fp32, and one with what saves memory."""
    return MODELS[1:2] if kind else MODELS[: 4 if precision == "bf16" else 2]


def trained(config: dict[str, Any], ranks: Any, runtime: Runtime, lora: Lora | None) -> Any:
    """A trainer that has taken a step, so that its optimizer's state is there."""
    from megatron_ext.checkpoint import reading
    from megatron_ext.training.trainer import Trainer

    model = reading.initialise(config, ranks, seed=3, training=runtime)
    if lora is not None:
        reading.add_adapters(model, ranks, lora, seed=0)
    trainer = Trainer(model, ranks, Optimizer(learning_rate=1e-4), micro_batch=2, memory=runtime.memory)
    trainer.step(terms(), Blur(gamma=0.5), 1e-4)
    return trainer


def terms() -> list[Any]:
    from megatron_ext.data.collate import SequenceDataset
    from megatron_ext.data.sequences import Sequences
    from megatron_ext.losses.nll import NLL
    from megatron_ext.losses.npo import NPO
    from megatron_ext.training.loss_terms import LossTerm

    sequences, rows = Sequences.pack([(list(range(2, 14)), 1)] * 4), list(range(4))
    return [
        LossTerm("forget_loss", NPO(beta=0.1), SequenceDataset([sequences], np.zeros(4)), rows),
        LossTerm("retain_loss", NLL(), SequenceDataset([sequences]), rows),
    ]


def storages(tensors: Any) -> int:
    """Bytes of the storages that the tensors lie in, each once."""
    found = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}
    return sum(found.values())


def counted(trainer: Any) -> dict[str, int]:
    import torch

    optimizer, state, masters, host = trainer.optimizer, [], [], 0
    model = storages(trainer.model.parameters())
    for each in optimizer.chained_optimizers:
        inner = each.optimizer
        if trainer.memory_settings.optimizer == "offload":
            kept = [t for s in inner.state.values() for t in s.values() if t.numel() > 1]
            host = storages([*kept, *inner.cpu_copy_map_grad.values()])
            continue
        state += [t for s in inner.state.values() for t in s.values() if torch.is_tensor(t) and t.numel() > 1]
        of_model = {p.untyped_storage().data_ptr() for p in trainer.model.parameters()}
        params = [p for group in inner.param_groups for p in group["params"]]
        masters += [p for p in params if p.untyped_storage().data_ptr() not in of_model]
    return {
        "weights": model,
        "gradients": storages(b.grad_data for b in trainer.accumulator.ddp.buffers),
        "vectors": storages(trainer.accumulator.space.copy()),
        "optimizer": storages([*state, *masters]),
        "host": host,
    }


def all_counts() -> list[dict[str, int]]:
    from megatron_ext.distributed import process_groups

    found = []
    for layout, precision, kind in CASES:
        settings = {"device": "cpu", "precision": precision, "layout": layout, "memory": kind, "timeout_seconds": 60}
        runtime = Runtime.model_validate(settings)
        with process_groups.start(runtime) as ranks:
            found += [
                counted(trained(config, ranks, runtime, lora)) | {"stage": ranks.pipeline_rank}
                for config, lora in models(precision, kind)
            ]
    return found


@pytest.mark.slow
def test_what_stays_on_a_rank_is_what_was_planned() -> None:
    """Three sizes, tied and not, adapters, precisions, every kind of split and memory: within 5 % of what is there."""
    for rank in run_ranks(all_counts, 4, timeout=120):
        found = iter(rank)
        for layout, precision, kind in CASES:
            runtime = Runtime.model_validate({"precision": precision, "layout": layout, "memory": kind})
            for config, lora in models(precision, kind):
                real = next(found)
                work = Workload(Batching(global_batch=4, micro_batch=2), vectors=1, lora=lora)
                planned = lasting(work, runtime, Shape.of(config))[real.pop("stage")]
                for part, size in real.items():
                    assert getattr(planned, part) == pytest.approx(size, rel=0.05), (layout, precision, kind, part)


LARGER = SIZES[1:]  # of the smallest, 6 % of a stage is what buckets are filled up with, which has no state
WHOLE = {"tensor": 2, "pipeline": 2, "data": 2, "distributed_optimizer": True, "sequence_parallel": True}


def every_rank_alone() -> list[list[dict[str, int]]]:
    """Of each size, what every rank of ``WHOLE`` allocates, one after the other in one process: torch's fake process
    group tells each where it stands, and moves nothing."""
    import torch
    import torch.distributed as dist
    from torch.testing._internal.distributed.fake_pg import FakeStore

    from megatron_ext.checkpoint import reading
    from megatron_ext.distributed import cpu, process_groups
    from megatron_ext.training import optimizer
    from megatron_ext.training.trainer import Trainer

    cpu.install()
    runtime = Runtime.model_validate({"device": "cpu", "precision": "bf16", "layout": WHOLE})
    found: list[list[dict[str, int]]] = [[] for _ in LARGER]
    for rank in range(runtime.layout.ranks):
        dist.init_process_group("fake", rank=rank, world_size=runtime.layout.ranks, store=FakeStore())
        ranks = process_groups.model_parallel(runtime, torch.device("cpu"), rank, runtime.layout.ranks)
        for config, counts in zip(LARGER, found, strict=True):
            model = reading.initialise(config, ranks, seed=3, training=runtime)
            trainer = Trainer(model, ranks, Optimizer(learning_rate=1e-4), micro_batch=2)
            optimizer.step(trainer.optimizer, runtime.memory)  # on a gradient of zeros: its state is made
            counts.append(counted(trainer) | {"stage": ranks.pipeline_rank, "tensor": ranks.tensor_rank})
        process_groups.leave()
    return found


@pytest.mark.slow
def test_what_stays_where_every_kind_of_split_is_above_one() -> None:
    """Tensor 2 x pipeline 2 x data 2, every rank of it: within 5 % of what is allocated, tied and not."""
    runtime = Runtime.model_validate({"precision": "bf16", "layout": WHOLE})
    (found,) = run_ranks(every_rank_alone, 1, timeout=120)
    for config, counts in zip(LARGER, found, strict=True):
        assert {(count.pop("tensor"), count["stage"]) for count in counts} == {(0, 0), (0, 1), (1, 0), (1, 1)}
        work = Workload(Batching(global_batch=4, micro_batch=2), vectors=1)
        planned = lasting(work, runtime, Shape.of(config))
        for count in counts:
            own = planned[count.pop("stage")]
            assert {part: getattr(own, part) for part in count} == pytest.approx(count, rel=0.05)


@pytest.mark.parametrize(("activations", "total"), [(1, 4), (9, 11)])
def test_vectors_made_between_passes_lie_in_the_place_of_activations(activations: int, total: int) -> None:
    """Only this has both kinds of vectors at either side of where the peak moves."""
    assert Memory(vectors=4, between=2, activations=activations).total == total


def most_vectors(rule: Rule) -> tuple[int, int]:
    """The most storages of a whole vector's size that lived at once in a step of ``rule``, beside those that stay:
    at any time, and while a matrix was multiplied."""
    import torch
    from torch.multiprocessing.reductions import StorageWeakRef
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils._pytree import tree_leaves

    from megatron_ext.distributed import process_groups

    class Count(TorchDispatchMode):
        def __init__(self, size: int, staying: set[int]) -> None:
            super().__init__()
            self.size, self.staying, self.live = size, staying, dict[int, StorageWeakRef]()
            self.most = self.most_in_passes = 0

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if func is torch.ops.aten.mm.default:
                self.live = {key: ref for key, ref in self.live.items() if not ref.expired()}
                self.most_in_passes = max(self.most_in_passes, len(self.live))
            out = func(*args, **(kwargs or {}))
            for tensor in tree_leaves(out):
                if isinstance(tensor, torch.Tensor) and tensor.untyped_storage().nbytes() == self.size:
                    storage = tensor.untyped_storage()
                    if storage.data_ptr() not in self.staying:
                        self.live[storage._cdata] = StorageWeakRef(storage)
                        self.live = {key: ref for key, ref in self.live.items() if not ref.expired()}
                        self.most = max(self.most, len(self.live))
            return out

    from megatron_ext.checkpoint import reading
    from megatron_ext.training.trainer import Trainer

    with process_groups.start(Runtime(device="cpu")) as ranks:
        trainer = Trainer(reading.initialise(SIZES[0], ranks, seed=3), ranks, Optimizer(learning_rate=1e-4), 4)
        held, kept = trainer.accumulator.space.held, {}
        made = terms()
        state = rule.start(1.0)
        with (
            mock.patch.object(Products, "cosine", 0.5),  # both losses are of the same rows, and nearly parallel
            Count(held[0].untyped_storage().nbytes(), {held[0].untyped_storage().data_ptr()}) as count,
        ):
            for _ in range(2):
                trainer.step(made, rule, 1e-4, state=state, whole_retain=lambda: made[1], kept=kept)
    return count.most, count.most_in_passes


@pytest.mark.slow
@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)
def test_a_rule_holds_no_more_vectors_than_it_says(rule: Rule, monkeypatch: pytest.MonkeyPatch) -> None:
    """In two steps, so that vectors that a rule keeps are among them; a plan counts on ``Rule.vectors``."""
    from megatron_ext.training import gradients

    monkeypatch.setattr(gradients, "_CHUNK", {"cpu": 1024})  # as in a model that is larger than a stretch of it
    most, in_passes = most_vectors(rule)
    assert most <= rule.vectors and in_passes <= rule.vectors_in_passes
    if rule.name != "ngdiff":  # it needs its most only in some of its steps
        assert (most, in_passes) == (rule.vectors, rule.vectors_in_passes)
