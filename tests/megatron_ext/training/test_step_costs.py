"""What a step costs beside arithmetic: memory, collectives, and waits for the device. BLUR against a weighted sum."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from megatron_ext.config import Layout, Optimizer, Runtime
from megatron_ext.data.collate import SequenceDataset
from megatron_ext.data.sequences import Sequences
from megatron_ext.losses.nll import NLL
from megatron_ext.losses.npo import NPO
from megatron_ext.updates import Rule
from megatron_ext.updates.blur import Blur
from megatron_ext.updates.weighted_sum import WeightedSum
from tests.support.distributed import run_ranks
from tests.support.worlds import CONFIG

LAYOUTS: dict[str, dict[str, Any]] = {
    "tp2-sp": {"tensor": 2, "sequence_parallel": True},
    "pp2": {"pipeline": 2},
    "dp2": {"data": 2},
    "dp2-sharded": {"data": 2, "distributed_optimizer": True},
}
# So long that activations, not the step's arithmetic on vectors, make the peak of memory.
ROWS = 32
SEQUENCES = Sequences.pack([(list(range(2, 62)), 1)] * ROWS)
METHODS: dict[str, tuple[Rule, bool]] = {
    "weighted sum": (WeightedSum(), False),
    "weighted sum, diagnostics": (WeightedSum(), True),
    "blur": (Blur(gamma=0.5), False),
}
Costs = dict[str, Any]


class Recorder(TorchDispatchMode):
    """Collectives by operation, group and dtype; waits for a number on the device; bytes of storages, at their peak."""

    def __init__(self, groups: dict[str, str]) -> None:
        super().__init__()
        self.collectives: Counter[tuple[str, str, str]] = Counter()
        self.waits = self.peak = 0
        self._at_most = 0  # bytes of what lives now, and of some of what does no more
        self._groups = groups
        self._live: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        name = func.name().removesuffix("_")
        if name.startswith("c10d::"):
            group = next(dist.ProcessGroup.unbox(a) for a in args if isinstance(a, torch.ScriptObject))
            tensor = next(t for t in tree_leaves(args) if isinstance(t, torch.Tensor))
            kind = str(tensor.dtype).removeprefix("torch.")
            self.collectives[name.removeprefix("c10d::").strip("_"), self._groups[group.group_name], kind] += 1
        self.waits += name == "aten::_local_scalar_dense"
        self._weigh([t for t in tree_leaves(out) if isinstance(t, torch.Tensor)])
        return out

    def _weigh(self, made: list[torch.Tensor]) -> None:
        for tensor in made:
            storage = tensor.untyped_storage()
            self._live[storage._cdata] = (StorageWeakRef(storage), storage.nbytes())
            self._at_most += storage.nbytes()
        if self._at_most > self.peak:
            self._live = {key: entry for key, entry in self._live.items() if not entry[0].expired()}
            self._at_most = sum(size for _, size in self._live.values())
            self.peak = max(self.peak, self._at_most)

    def __enter__(self) -> Any:
        self._tolist = torch.Tensor.tolist  # which reads a CPU tensor without an operator

        def tolist(tensor: torch.Tensor) -> Any:
            self.waits += 1
            return self._tolist(tensor)

        torch.Tensor.tolist = tolist  # type: ignore[method-assign]
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        torch.Tensor.tolist = self._tolist  # type: ignore[method-assign]
        super().__exit__(*error)


def group_names(ranks: Any) -> dict[str, str]:
    from megatron.core import parallel_state

    named = {
        "world": dist.group.WORLD,
        "tensor": ranks.tensor_group,
        "pipeline": ranks.pipeline_group,
        "data": ranks.data_group,
        "data ": parallel_state.get_data_parallel_group(with_context_parallel=True),
        "embedding": parallel_state.get_embedding_group(check_initialized=False),
    }
    return {group.group_name: name.strip() for name, group in named.items() if isinstance(group, dist.ProcessGroup)}


def step_costs(ranks: Any, method: str) -> Costs:
    """Of the second step, when what is kept from step to step is there."""
    from megatron_ext.checkpoint import reading
    from megatron_ext.training.loss_terms import LossTerm
    from megatron_ext.training.trainer import Trainer

    config = {**CONFIG, "hidden_size": 64, "num_hidden_layers": 4}
    model = reading.initialise(config, ranks, seed=3, training=Runtime(layout=ranks.layout))
    trainer = Trainer(model, ranks, Optimizer(learning_rate=0.01), micro_batch=8)
    rows, (rule, separate) = list(range(ROWS)), METHODS[method]
    terms = [
        LossTerm("forget_loss", NPO(beta=0.1), SequenceDataset([SEQUENCES], np.zeros(ROWS)), rows),
        LossTerm("retain_loss", NLL(), SequenceDataset([SEQUENCES]), rows),
    ]
    trainer.step(terms, rule, 0.01, separate)
    with Recorder(group_names(ranks)) as recorder:
        trainer.step(terms, rule, 0.01, separate)
    shard = sum(piece.numel() * piece.element_size() for piece in trainer.accumulator.space.held)
    counts = dict(sorted(recorder.collectives.items()))
    return {"collectives": counts, "waits": recorder.waits, "peak": recorder.peak, "shard": shard}


def all_costs() -> dict[tuple[str, str], Costs]:
    from megatron_ext.distributed import process_groups

    found = {}
    for name, layout in LAYOUTS.items():
        with process_groups.start(Runtime(device="cpu", layout=Layout(**layout))) as ranks:
            for method in METHODS:
                found[name, method] = step_costs(ranks, method)
    return found


@pytest.fixture(scope="module")
def costs() -> list[dict[tuple[str, str], Costs]]:
    """By rank, then by layout and method. What came once a layer would show four times."""
    return run_ranks(all_costs, 2)


# Beyond the weighted sum's, where each loss's gradient is reduced by itself: over data-parallel ranks (alone or not),
# over the ends of the pipeline for a tied embedding, over tensor-parallel ranks for norms under sequence parallelism.
SECOND_REDUCTION = {
    "tp2-sp": {("allreduce_coalesced", "data", "float32"): 1, ("allreduce", "tensor", "float32"): 1},
    "pp2": {("allreduce_coalesced", "data", "float32"): 1, ("allreduce", "embedding", "float32"): 1},
    "dp2": {("allreduce_coalesced", "data", "float32"): 1},
    "dp2-sharded": {("reduce_scatter_tensor_coalesced", "data", "float32"): 1},
}


@pytest.mark.slow
@pytest.mark.parametrize("layout", LAYOUTS)
def test_one_all_reduce_carries_the_numbers_of_a_step(costs: Any, layout: str) -> None:
    for rank in costs:
        for method in METHODS:
            counts = rank[layout, method]["collectives"]
            assert {key: n for key, n in counts.items() if key[1] == "world" or key[2] == "float64"} == {
                ("allreduce", "world", "float64"): 1
            }


@pytest.mark.slow
@pytest.mark.parametrize("layout", LAYOUTS)
def test_blur_adds_no_collective_but_the_second_reduction(costs: Any, layout: str) -> None:
    for rank in costs:
        summed, apart, blur = (rank[layout, method]["collectives"] for method in METHODS)
        assert blur == apart
        assert Counter(blur) - Counter(summed) == SECOND_REDUCTION[layout]
        assert not Counter(summed) - Counter(blur)


@pytest.mark.slow
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_step_waits_once_for_the_device(costs: Any, layout: str) -> None:
    """For the reduced numbers; a pipeline stage also for the shape of each micro-batch that it is sent."""
    shapes = 8 if layout == "pp2" else 0  # of 2 losses' 32 rows, 8 a micro-batch
    for rank in costs:
        for method in METHODS:
            assert rank[layout, method]["waits"] == 1 + shapes


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["pp2", "dp2", "dp2-sharded"])
def test_blur_holds_one_vector_of_the_ranks_shard_more(costs: Any, layout: str) -> None:
    """Not asked at tensor-parallel layouts, where gloo's threads let go of activations at any time."""
    for rank in costs:
        summed, blur = rank[layout, "weighted sum"], rank[layout, "blur"]
        assert blur["peak"] - summed["peak"] == pytest.approx(blur["shard"], rel=0.005)
    plain, sharded = (costs[0][name, "blur"]["shard"] for name in ("dp2", "dp2-sharded"))
    assert sharded == pytest.approx(plain / 2, rel=0.01)  # but for alignment
