"""Vectors, moved weights and the rules that use them: the same at every layout, plain and distributed optimizer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from megatron_ext.config import Layout, Optimizer, Runtime
from megatron_ext.data.collate import SequenceDataset
from megatron_ext.losses.ga import GA
from megatron_ext.losses.nll import NLL
from megatron_ext.updates import Products, Rule, StepPosition
from megatron_ext.updates.blur import Blur
from megatron_ext.updates.gru import GRU
from megatron_ext.updates.ngdiff import AutomaticRate, NGDiff
from megatron_ext.updates.ofmu import OFMU
from megatron_ext.updates.pcgrad import PCGrad
from megatron_ext.updates.primal_dual import PrimalDual
from megatron_ext.updates.sago import SAGO
from megatron_ext.updates.sam import SAM
from megatron_ext.updates.weighted_sum import WeightedSum
from tests.support.distributed import run_ranks
from tests.support.worlds import CONFIG, sequences

# Rules run where two kinds of splits meet; at one alone in ``test_methods`` and ``tests/families``.
LAYOUTS: dict[str, dict[str, Any]] = {
    "tp2": {"tensor": 2},
    "dp2-sharded": {"data": 2, "distributed_optimizer": True},
    # tied embeddings over sharded gradients, in a bucket of their own
    "pp2-dp2-sharded": {"pipeline": 2, "data": 2, "distributed_optimizer": True},
    "tp2-dp2-sharded": {"tensor": 2, "data": 2, "distributed_optimizer": True},
}
PAIRS = 5
PDU: dict[str, Any] = {"dual": 0.5, "dual_rate": 0.3, "epsilon": 4.0}
RULES: dict[str, Rule] = {
    "pdu-step": PrimalDual(**PDU),
    "pdu-micro-batch": PrimalDual(**PDU, dual_update="micro-batch"),
    "pdu-epoch": PrimalDual(**PDU, dual_update="epoch"),
    "ngdiff": NGDiff(automatic_rate=AutomaticRate(every=1, lowest=1e-7, highest=1.0)),
    "ofmu": OFMU(beta=1.0, penalty=0.1, inner_steps=1, difference=1e-4),
    "ofmu-no-angle": OFMU(beta=0.0, penalty=0.1, inner_steps=1, difference=1e-4),
    "pcgrad-tensor": PCGrad(scope="tensor"),
    "sago": SAGO(),
    "gru": GRU(lowest_cosine=-0.3),
    "sam": SAM(rho=0.5),
}
# Differences of losses and of gradients magnify rounding: measured 5e-5, 4e-4 and 4e-5; of the others 2e-6.
TOLERANCES = {"ngdiff": 3e-4, "ofmu": 1e-3, "ofmu-no-angle": 3e-4}
SPAN: list[Rule] = [Blur(gamma=0.3), NGDiff(), WeightedSum(forget_weight=0.2, retain_weight=3.0)]


def drawn(name: str, shape: tuple[int, ...], pair: int, which: int) -> np.ndarray:
    """A Hugging Face tensor's part of a random vector: the second of a pair leans towards the first."""
    own = np.random.default_rng([pair, which, *name.encode()]).normal(size=shape) * 10.0 ** ((7 * pair + which) % 9 - 4)
    return (own + drawn(name, shape, pair, 0) * (pair / PAIRS - 0.5) if which else own).astype(np.float32)


def true_products(pair: int) -> list[Products]:
    """Of each Hugging Face tensor."""
    from megatron_ext.checkpoint import mapping

    found = []
    for name, shape in mapping.tensor_shapes(CONFIG).items():
        f, r = (drawn(name, shape, pair, which).astype(np.float64) for which in (0, 1))
        found.append(Products((f * f).sum(), (f * r).sum(), (r * r).sum()))
    return found


def draw_into(model: Any, ranks: Any, tensors: dict[str, Any], pair: int, which: int) -> None:
    """Write this rank's parts of a random vector into ``tensors``, which are called and shaped as parameters are."""
    import torch

    from megatron_ext.checkpoint import mapping

    for entry in mapping.entries(model.hf_config, ranks.layout, ranks.pipeline_rank):
        for part in entry.parts(ranks.tensor_rank, ranks.layout.tensor):
            place = part.place(entry.find(tensors))
            value = drawn(part.name, entry.shapes[part.name], pair, which)[part.index]
            place.copy_(torch.from_numpy(value).reshape(place.shape))


def make(ranks: Any, micro: int) -> Any:
    from megatron_ext.checkpoint import reading
    from megatron_ext.training.trainer import Trainer

    # With so large an epsilon Adam's update is smooth where a gradient is near zero.
    optimizer = Optimizer(learning_rate=0.05, epsilon=0.1)
    return Trainer(reading.initialise(CONFIG, ranks, seed=3), ranks, optimizer, micro)


def check_vectors(t: Any, ranks: Any) -> list[list[Products]]:
    """Inner products of random pairs, within each tensor; they add up to those of the whole vectors. Directions in the
    span of a pair, element by element."""
    import torch

    gradients = {name: p.main_grad for name, p in t.model.named_parameters()}
    found = []
    for pair in range(PAIRS):
        vectors = []
        for which in (0, 1):
            t.accumulator.ddp.zero_grad_buffer()
            draw_into(t.model, ranks, gradients, pair, which)
            vectors.append(t.accumulator.space.copy())
        f, r = vectors
        space = t.accumulator.space
        parts = space.reduce(space.tensor_products([f, r]).flatten())
        found.append([Products(*parts[i : i + 2], parts[i + 3]) for i in range(0, len(parts), 4)])
        ff, fr, _, rr = space.reduce(space.products([f, r]).flatten())
        whole = Products(ff, fr, rr)
        same_products([whole], [Products.total(found[-1])])
        for rule in SPAN:
            u = rule.direction(whole)
            t.accumulator.space.hold(r)
            t.accumulator.space.combine(u.retain, f, u.forget)
            for mine, made, a, b in zip(
                t.accumulator.space.held, t.accumulator.space.linear((u.forget, f), (u.retain, r)), f, r, strict=True
            ):
                wanted = u.forget * a.double() + u.retain * b.double()
                close = {"rtol": 1e-5, "atol": 1e-6 * float(wanted.abs().max()) if len(wanted) else 0.0}
                torch.testing.assert_close(mine.double(), wanted, **close)
                torch.testing.assert_close(made.double(), wanted, **close)
    return found


def check_moves(t: Any, ranks: Any) -> float:
    """Weights along a vector, whole on every rank, and back; the weights' squared norm."""
    import torch

    t.accumulator.ddp.zero_grad_buffer()
    parameters = dict(t.model.named_parameters())
    draw_into(t.model, ranks, {name: p.main_grad for name, p in parameters.items()}, 5, 0)
    vector = t.accumulator.space.copy()
    whole = {name: torch.zeros_like(p, requires_grad=False) for name, p in parameters.items()}
    draw_into(t.model, ranks, whole, 5, 0)
    start = {name: p.detach().clone() for name, p in parameters.items()}
    scales = []
    with t.accumulator.space.perturbed_weights(vector, 0.5, -2.0) as visits:
        for scale in visits:
            scales.append(scale)
            for name, p in parameters.items():
                torch.testing.assert_close(p.detach(), start[name] + scale * whole[name], rtol=1e-6, atol=1e-7)
    assert scales == [0.5, -2.0]
    assert all(torch.equal(p, start[name]) for name, p in parameters.items())
    base = t.accumulator.space.weights()
    (square,) = t.accumulator.space.reduce(t.accumulator.space.products([base]).flatten())
    return square


def check_extrapolation(ranks: Any, folder: Path) -> None:
    import torch

    from megatron_ext.checkpoint import reading

    model, origin = reading.load(folder, ranks), reading.load(folder, ranks)
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(1.25)
    reading.extrapolate(model, ranks, folder, -5.0)
    for p, q in zip(model.parameters(), origin.parameters(), strict=True):
        torch.testing.assert_close(p, -0.25 * q, rtol=1e-5, atol=1e-6)
    # In bf16 the model begins with rounded weights, and one that has not moved stays where it was.
    rounded = reading.load(folder, ranks).bfloat16()
    before = [p.detach().clone() for p in rounded.parameters()]
    reading.extrapolate(rounded, ranks, folder, -5.0)
    assert all(torch.equal(p, q) for p, q in zip(rounded.parameters(), before, strict=True))


def run_rule(rule: Rule, ranks: Any, micro: int) -> dict[str, Any]:
    """Two steps: what they report, the rule's state after each, and this rank's share of every weight's change."""
    from megatron_ext.checkpoint import mapping
    from megatron_ext.training.loss_terms import LossTerm

    t = make(ranks, micro)
    parameters = dict(t.model.named_parameters())
    before = {key: value.detach().clone() for key, value in parameters.items()}
    retain = SequenceDataset([sequences(40, 2)])
    terms = [
        LossTerm("forget_loss", GA(), SequenceDataset([sequences(10, 1)]), [0, 3, 4, 7, 9]),
        LossTerm("retain_loss", NLL(), retain, [1, 5, 8, 20, 33]),
    ]
    everything = LossTerm("all", NLL(), retain, range(40))
    state, kept, states, reports = rule.start(None), {}, [], []  # type: ignore[var-annotated]
    for i in range(2):
        taken = t.step(
            terms,
            rule,
            0.05,
            state=state,
            kept=kept,
            position=StepPosition(i, i, True),
            whole_retain=lambda: everything,
        )
        measured = [taken.forget_alignment, taken.retain_alignment, taken.products and taken.products.cosine]
        reports += [taken.update_norm, taken.rate, *taken.losses.values(), *(m for m in measured if m is not None)]
        states.append(dict(state))
    moved = []
    for entry in mapping.entries(t.model.hf_config, ranks.layout, ranks.pipeline_rank):
        change = entry.find(parameters).detach() - entry.find(before)
        for part in entry.parts(ranks.tensor_rank, ranks.layout.tensor):
            shape = np.empty(entry.shapes[part.name])[part.index].shape
            moved.append((part.name, part.index, part.place(change).reshape(shape).numpy()))
    return {"reports": reports, "states": states, "moved": moved}


def at_layouts(layouts: list[dict[str, Any]], folder: Path) -> list[dict[str, Any]]:
    from megatron_ext.distributed import process_groups

    found = []
    for layout in layouts:
        with process_groups.start(Runtime(device="cpu", layout=Layout(**layout))) as ranks:
            t = make(ranks, 2)
            products, square = check_vectors(t, ranks), check_moves(t, ranks)
            check_extrapolation(ranks, folder)
            rules = {name: run_rule(rule, ranks, 2) for name, rule in RULES.items() if ranks.layout.ranks == 4}
            found.append({"products": products, "square": square, "rules": rules})
    return found


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory, alone: Any) -> Path:
    from megatron_ext.checkpoint import reading, writing

    folder = tmp_path_factory.mktemp("checkpoint")
    writing.save(reading.initialise(CONFIG, alone, seed=4), alone, folder / "model", None)
    return folder / "model"


@pytest.fixture(scope="module")
def one_process(alone: Any, checkpoint: Path) -> tuple[dict[str, Any], list[list[Products]], float]:
    """What the rules do, with the micro-batches of two data-parallel ranks; true inner products; the weights' squared
    norm."""
    t = make(alone, 2)
    truth = [true_products(pair) for pair in range(PAIRS)]
    for found, true in zip(check_vectors(t, alone), truth, strict=True):
        same_products(found, true)
    check_extrapolation(alone, checkpoint)
    single = {name: run_rule(rule, alone, 2 * 2) for name, rule in RULES.items()}
    return single, truth, check_moves(t, alone)


@pytest.mark.slow
@pytest.mark.parametrize("size", [2, 4])
def test_every_layout_gives_the_same(size: int, one_process: Any, checkpoint: Path) -> None:
    single, truth, square = one_process
    chosen = {name: layout for name, layout in LAYOUTS.items() if Layout(**layout).ranks == size}

    found = run_ranks(at_layouts, size, list(chosen.values()), checkpoint, timeout=240)

    for i, layout in enumerate(chosen):
        for rank in (results[i] for results in found):
            for products, true in zip(rank["products"], truth, strict=True):
                same_products(products, true)
            assert rank["square"] == pytest.approx(square, rel=1e-9)
            assert set(rank["rules"]) == (set(RULES) if size == 4 else set())
            for name in rank["rules"]:
                where = f"{name} at {layout}"
                tolerance = TOLERANCES.get(name, 1e-5)
                mine, theirs = rank["rules"][name], single[name]
                first = found[0][i]["rules"][name]
                assert (mine["states"], mine["reports"]) == (first["states"], first["reports"]), (
                    f"{where}: ranks differ"
                )
                for a, b in zip(mine["states"], theirs["states"], strict=True):
                    assert a == pytest.approx(b, rel=tolerance), where
                close = {"rtol": tolerance, "atol": tolerance, "err_msg": where}
                np.testing.assert_allclose(mine["reports"], theirs["reports"], **close)
                whole = {part: value for part, _, value in theirs["moved"]}
                largest = max(float(np.abs(value).max()) for value in whole.values())
                for part, index, value in mine["moved"]:
                    close = {"rtol": 0, "atol": 3 * tolerance * largest, "err_msg": f"{where}: {part}"}
                    np.testing.assert_allclose(value, whole[part][index], **close)


def same_products(found: list[Products], truth: list[Products]) -> None:
    """And so the same directions, which follow from the products."""
    for a, b in zip(found, truth, strict=True):
        assert (a.ff, a.rr) == (pytest.approx(b.ff, rel=1e-9), pytest.approx(b.rr, rel=1e-9))
        assert a.fr == pytest.approx(b.fr, abs=1e-9 * np.sqrt(b.ff * b.rr))
