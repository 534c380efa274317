"""The same step at every layout, recomputed or not, in micro-batches of any size, padded or packed: equal numbers."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import numpy as np
import pytest

from megatron_ext.config import Layout, Optimizer, Runtime, TrainableLayers
from megatron_ext.data.collate import SequenceDataset
from megatron_ext.losses.nll import NLL
from megatron_ext.losses.npo import NPO
from megatron_ext.losses.rmu import RMU
from megatron_ext.updates.blur import Blur
from megatron_ext.updates.weighted_sum import WeightedSum
from tests.support.distributed import run_ranks
from tests.support.worlds import CONFIG, sequences

FORGET, RETAIN = sequences(10, 1), sequences(40, 2)
REFERENCE = np.linspace(-60.0, -20.0, 10)
FORGET_ROWS, RETAIN_ROWS = [0, 3, 4, 7, 9], [1, 5, 8, 20, 33]
MODELS: dict[str, dict[str, Any]] = {
    # norms of queries and keys, whose weights see only a rank's heads; the embedding is on both pipeline ends
    "tied": {"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "head_dim": 8, "tie_word_embeddings": True},
    # norms behind attention and MLP, windows
    "gemma": {"architectures": ["Gemma2ForCausalLM"], "model_type": "gemma2", "head_dim": 8, "sliding_window": 5},
    # biases
    "untied": {"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "tie_word_embeddings": False},
}
# ``test_step_layouts`` has the other layouts, in fp32 and on Llama; here is what is different with sequence parallelism
# and for tensors that Llama lacks. Over tensors alone it is in ``tests/megatron_ext/losses/test_methods.py``.
LAYOUTS: dict[str, dict[str, Any]] = {
    "tp2-sp-pp2": {"tensor": 2, "pipeline": 2, "sequence_parallel": True},
    "tp2-sp-dp2-sharded": {"tensor": 2, "data": 2, "sequence_parallel": True, "distributed_optimizer": True},
}
# Of the cosine absolutely; relatively, of the other numbers and of each tensor's change (in bf16, of the tensor). Seen:
# in fp32 7e-8, 5e-7 (the product of the two gradients, which is the smallest, 2e-6) and 4e-6; in bf16, whose numbers
# are 8e-3 apart, 1e-3, 1e-2 and 4e-2, the last of biases, which began at zero, 1e-2 of all others.
TOLERANCE = {"fp32": (1e-6, 1e-5, 1e-5), "bf16": (5e-3, 2e-2, 1e-1)}
Case = tuple[str, str, str, int]  # precision, model, form, micro-batch
CASES: list[Case] = [
    *itertools.product(["fp32"], MODELS, ["padded"], [2]),
    ("fp32", "tied", "recomputed", 2),
    ("fp32", "tied", "padded", 4),
    ("fp32", "gemma", "packed", 4),
    ("fp32", "tied", "packed recomputed", 2),
    *itertools.product(["bf16"], ["tied", "untied"], ["padded"], [2]),
]


def steps(ranks: Any, case: Case) -> dict[str, Any]:
    """Two BLUR-NPO steps: what they report, and of every Hugging Face tensor this rank's share of its change; in bf16,
    whose rounding is relative to the weight, of the tensor itself."""
    import torch

    from megatron_ext.checkpoint import mapping, reading
    from megatron_ext.training.loss_terms import LossTerm
    from megatron_ext.training.trainer import Trainer

    precision, name, form, micro = case
    ranks = dataclasses.replace(ranks, dtype={"fp32": torch.float32, "bf16": torch.bfloat16}[precision])
    training = Runtime(layout=ranks.layout, recompute_activations="recomputed" in form)
    model = reading.initialise({**CONFIG, **MODELS[name]}, ranks, seed=3, training=training)
    # With so large an epsilon Adam's update is smooth where a gradient is near zero.
    trainer = Trainer(model, ranks, Optimizer(learning_rate=0.05, epsilon=0.1), micro, packed="packed" in form)
    before = {key: value.detach().clone() for key, value in model.named_parameters()}
    terms = [
        LossTerm("forget_loss", NPO(beta=0.1), SequenceDataset([FORGET], REFERENCE), FORGET_ROWS),
        LossTerm("retain_loss", NLL(), SequenceDataset([RETAIN]), RETAIN_ROWS),
    ]
    reports = []
    for _ in range(2):
        taken = trainer.step(terms, Blur(gamma=0.5), rate=0.05)
        p = taken.products
        assert p is not None
        reports.append([p.ff, p.fr, p.rr, taken.update_norm, *taken.losses.values()])
    tensors, after = [], dict(model.named_parameters())
    for entry in mapping.entries(model.hf_config, ranks.layout, ranks.pipeline_rank):
        value = entry.find(after).detach().float()
        if precision == "fp32":
            value = value - entry.find(before)
        for part in entry.parts(ranks.tensor_rank, ranks.layout.tensor):
            tensors.append((part.name, part.index, part.place(value).reshape(-1).numpy()))
    return {"reports": np.array(reports), "tensors": tensors, "shapes": mapping.tensor_shapes(model.hf_config)}


def all_steps(layouts: list[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """Every case at every layout of as many ranks, in one start of the processes."""
    from megatron_ext.distributed import process_groups

    found = []
    for layout in layouts:
        with process_groups.start(Runtime(device="cpu", layout=Layout(**layout))) as ranks:
            found.append([steps(ranks, case) for case in CASES])
    return found


@pytest.fixture(scope="module")
def single(alone: Any) -> dict[tuple[str, str], dict[str, Any]]:
    """One process's numbers, by precision and model, and its tensors by name."""
    found = {}
    for precision, name in itertools.product(["fp32", "bf16"], MODELS):
        result = steps(alone, (precision, name, "padded", 2))
        hf = result["shapes"]
        whole = {tensor: np.empty(shape, np.float32) for tensor, shape in hf.items()}
        for tensor, index, values in result["tensors"]:
            whole[tensor][index] = values.reshape(whole[tensor][index].shape)
        found[precision, name] = {"reports": result["reports"], "tensors": whole}
    return found


@pytest.fixture(scope="module")
def ranked() -> dict[tuple[str, Case], list[dict[str, Any]]]:
    """By layout and case, what each rank found."""
    results = run_ranks(all_steps, 4, list(LAYOUTS.values()), timeout=300)
    places = itertools.product(enumerate(LAYOUTS), enumerate(CASES))
    return {(name, case): [rank[i][j] for rank in results] for (i, name), (j, case) in places}


def worst_tensor(result: list[dict[str, Any]], whole: dict[str, np.ndarray]) -> float:
    """The largest relative error of a tensor, over tensors and ranks; every element is somewhere."""
    errors, seen = [], dict.fromkeys(whole, 0)
    for rank in result:
        for name, index, values in rank["tensors"]:
            expected = whole[name][index].reshape(-1)
            errors.append(np.linalg.norm(values - expected) / np.linalg.norm(expected))
            seen[name] += values.size
    assert all(seen[name] >= tensor.size for name, tensor in whole.items())
    return float(max(errors))


@pytest.mark.slow
@pytest.mark.parametrize("layout", LAYOUTS)
def test_steps_equal_the_single_processs(layout: str, ranked: Any, single: Any) -> None:
    for case in CASES:
        same_steps(case, ranked[layout, case], single[case[:2]])


def same_steps(case: Case, result: list[dict[str, Any]], expected: dict[str, Any]) -> None:
    for rank in result:
        assert (rank["reports"] == result[0]["reports"]).all(), f"{case}: the same bits on every rank"
    got, true = result[0]["reports"], expected["reports"]
    cosine, numbers, tensors = TOLERANCE[case[0]]
    scale = np.sqrt(true[:, 0] * true[:, 2])
    assert got[:, 1] / scale == pytest.approx(true[:, 1] / scale, abs=cosine), case
    assert np.delete(got, 1, axis=1) == pytest.approx(np.delete(true, 1, axis=1), rel=numbers), case
    if case[0] == "fp32":
        assert got[:, 1] == pytest.approx(true[:, 1], rel=numbers), case
    assert worst_tensor(result, expected["tensors"]) < tensors, case


@pytest.mark.slow
@pytest.mark.parametrize("layout", LAYOUTS)
def test_recomputation_changes_no_bit(layout: str, ranked: Any) -> None:
    for precision, name, form, micro in CASES:
        if form == "recomputed":
            plain = ranked[layout, (precision, name, "padded", micro)]
            for a, b in zip(plain, ranked[layout, (precision, name, form, micro)], strict=True):
                assert (a["reports"] == b["reports"]).all()
                assert all((x[2] == y[2]).all() for x, y in zip(a["tensors"], b["tensors"], strict=True))


@pytest.mark.parametrize("recompute_activations", [False, True])
def test_recomputation_runs_each_block_twice(recompute_activations: bool, alone: Any) -> None:
    from megatron_ext.checkpoint import reading
    from megatron_ext.training.loss_terms import LossTerm
    from megatron_ext.training.trainer import Trainer

    model = reading.initialise(CONFIG, alone, seed=3, training=Runtime(recompute_activations=recompute_activations))
    runs = []
    for layer in model.decoder.layers:
        layer.self_attention.register_forward_hook(lambda *_: runs.append(1))
    trainer = Trainer(model, alone, Optimizer(learning_rate=0.05), 2)
    trainer.step([LossTerm("retain_loss", NLL(), SequenceDataset([RETAIN]), RETAIN_ROWS)], WeightedSum(), rate=0.05)
    micro_batches, blocks = 3, 3
    assert len(runs) == micro_batches * blocks * (1 + recompute_activations)


def test_recomputation_reaches_the_first_trained_block_of_a_scope(alone: Any) -> None:
    """Nothing below it needs a gradient, its input neither."""
    from megatron_ext.checkpoint import reading, tensor_sources
    from megatron_ext.model import build as model
    from megatron_ext.training.loss_terms import LossTerm
    from megatron_ext.training.trainer import Trainer

    trainable_layers, found = TrainableLayers(up_to=2, layers_to_transform=[1, 2]), []
    for recompute_activations in (False, True):
        built = model.build(CONFIG, alone, trainable_layers, Runtime(recompute_activations=recompute_activations))
        reading.fill(built, alone, tensor_sources.InitialValues(CONFIG, 3))
        trainer = Trainer(built, alone, Optimizer(learning_rate=0.05), 2)
        trainer.accumulator.accumulate(
            [LossTerm("forget_loss", RMU(), SequenceDataset([FORGET]), FORGET_ROWS, topic="all")], [1.0]
        )
        found.append([p.main_grad for p in built.parameters() if p.requires_grad])
    assert len(found[0]) == 2
    for plain, again in zip(*found, strict=True):
        assert plain.any() and (plain == again).all()


def test_parameters_are_found_between_padding(alone: Any) -> None:
    """The distributed optimizer aligns each to 64 elements; here norms have 32."""
    import torch

    from megatron_ext.checkpoint import reading
    from megatron_ext.training.loss_terms import LossTerm
    from megatron_ext.training.trainer import Trainer

    ranks = dataclasses.replace(alone, layout=Layout(distributed_optimizer=True))
    model = reading.initialise({**CONFIG, **MODELS["untied"]}, ranks, seed=3)
    trainer = Trainer(model, ranks, Optimizer(learning_rate=0.05), 2)
    space = trainer.accumulator.space
    assert sum(piece.numel() for piece in space.held) > sum(p.numel() for p in model.parameters())
    trainer.accumulator.accumulate(
        [LossTerm("forget_loss", NPO(), SequenceDataset([FORGET], REFERENCE), FORGET_ROWS)], [1.0]
    )
    squared = sum(float(p.main_grad.double().square().sum()) for p in model.parameters())
    assert space.products([space.held]).item() == pytest.approx(squared, rel=1e-12)

    before = [p.detach().clone() for p in model.parameters()]
    with space.perturbed_weights(space.copy(), 0.5) as visits:
        for scale in visits:
            for p, old in zip(model.parameters(), before, strict=True):
                torch.testing.assert_close(p.detach(), old + scale * p.main_grad)
    assert all((p == old).all() for p, old in zip(model.parameters(), before, strict=True))


def test_inner_products_of_vanishing_gradients(alone: Any) -> None:
    """The squares of such numbers are none in fp32."""
    from megatron_ext.checkpoint import reading
    from megatron_ext.training.trainer import Trainer

    space = Trainer(reading.initialise(CONFIG, alone, 3), alone, Optimizer(learning_rate=0.1), 1).accumulator.space
    for piece in space.held:
        piece.fill_(1e-30)
    numbers = sum(piece.numel() for piece in space.held)
    assert space.products([space.held]).item() == pytest.approx(numbers * 1e-60, rel=1e-6)


def test_every_chunk_of_a_vector_counts(alone: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    from megatron_ext.checkpoint import reading
    from megatron_ext.training import gradients
    from megatron_ext.training.trainer import Trainer

    space = Trainer(reading.initialise(CONFIG, alone, 3), alone, Optimizer(learning_rate=0.1), 1).accumulator.space
    generator = torch.Generator().manual_seed(0)
    vectors = [[torch.randn(piece.shape, generator=generator) for piece in space.held] for _ in range(2)]
    f, r = (torch.cat(vector).double() for vector in vectors)
    monkeypatch.setattr(gradients, "_CHUNK", {"cpu": 1000})  # models of tests are smaller than a chunk
    assert max(piece.numel() for piece in space.held) > 10_000
    exact = torch.stack([f @ f, f @ r, f @ r, r @ r]).view(2, 2)
    torch.testing.assert_close(space.products(vectors), exact)


@pytest.mark.parametrize("kind", ["float32", "bfloat16"])
def test_combinations_are_rounded_once(alone: Any, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """Whatever the two factors, also where one is 0 or 1, in stretches or whole."""
    import torch

    from megatron_ext.checkpoint import reading
    from megatron_ext.training import gradients
    from megatron_ext.training.trainer import Trainer

    space = Trainer(reading.initialise(CONFIG, alone, 3), alone, Optimizer(learning_rate=0.1), 1).accumulator.space
    generator, dtype = torch.Generator().manual_seed(0), getattr(torch, kind)
    monkeypatch.setattr(gradients, "_CHUNK", {"cpu": 1000})
    for scale, other_scale in ((1.0, 1.0), (1.0, 0.5), (0.0, 0.5), (0.7, 0.0), (0.3, -2.0), (1.0, 0.0), (0.25, None)):
        first, second = (
            [torch.randn(piece.shape, generator=generator).to(dtype) for piece in space.held] for _ in range(2)
        )
        space.held = [piece.clone() for piece in first]
        space.combine(scale, *(() if other_scale is None else (second, other_scale)))
        for given, a, b in zip(space.held, first, second, strict=True):
            assert given.equal((a.float() * scale).add(b.float(), alpha=other_scale or 0.0).to(dtype))


@pytest.mark.parametrize(("sharded", "data"), [(False, 2), (True, 1)])
def test_weights_that_a_rank_has_whole_are_not_gathered(
    alone: Any, monkeypatch: pytest.MonkeyPatch, sharded: bool, data: int
) -> None:
    import torch.distributed as dist

    from megatron_ext.checkpoint import reading
    from megatron_ext.training.trainer import Trainer

    trainer = Trainer(reading.initialise(CONFIG, alone, 3), alone, Optimizer(learning_rate=0.1), 1)
    space, before = trainer.accumulator.space, trainer.checksum()
    space.ranks, space.sharded = dataclasses.replace(alone, layout=Layout(data=data)), sharded
    monkeypatch.setattr(dist, "all_gather_into_tensor", lambda *_, **__: pytest.fail("gathered"))
    space.set_weights(space.weights())
    assert (trainer.checksum() == before).all()


def test_memory_of_a_vector_is_used_again(alone: Any) -> None:
    from megatron_ext.checkpoint import reading
    from megatron_ext.training.trainer import Trainer

    space = Trainer(reading.initialise(CONFIG, alone, 3), alone, Optimizer(learning_rate=0.1), 1).accumulator.space
    first = space.copy()
    second = space.copy()
    assert first[0].data_ptr() != second[0].data_ptr()
    places = [piece.data_ptr() for piece in first]
    space.release(first)
    space.held[0].fill_(7.0)
    third = space.copy()
    assert [piece.data_ptr() for piece in third] == places
    assert (third[0] == 7.0).all()
    fourth = space.copy()
    assert {piece.data_ptr() for piece in fourth}.isdisjoint(places), "memory is given away once"
