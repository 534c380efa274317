"""One optimizer step against the same step written with plain autograd."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import pytest

from megatron_ext.config import Optimizer
from megatron_ext.data.collate import SequenceDataset
from megatron_ext.losses import Loss
from megatron_ext.losses.ga import GA
from megatron_ext.losses.nll import NLL
from megatron_ext.losses.npo import NPO
from megatron_ext.updates import Direction, Rule
from megatron_ext.updates.blur import Blur
from megatron_ext.updates.weighted_sum import WeightedSum
from tests.support.distributed import run_ranks
from tests.support.worlds import CONFIG, sequences

FORGET, RETAIN = sequences(10, 1), sequences(40, 2)
REFERENCE = np.linspace(-60.0, -20.0, 10)
FORGET_ROWS, RETAIN_ROWS = [0, 3, 4, 7, 9], [1, 5, 8, 20, 33]


def trainer(ranks: Any, **optimizer: Any) -> Any:
    from megatron_ext.checkpoint import reading
    from megatron_ext.training.trainer import Trainer

    model = reading.initialise(CONFIG, ranks, seed=3)
    return Trainer(model, ranks, Optimizer(learning_rate=0.1, **{"name": "sgd", **optimizer}), micro_batch=2)


def terms(forget: Loss, retain: Loss | None) -> list[Any]:
    from megatron_ext.training.loss_terms import LossTerm

    both = [LossTerm("forget_loss", forget, SequenceDataset([FORGET], REFERENCE), FORGET_ROWS)]
    return both if retain is None else [*both, LossTerm("retain_loss", retain, SequenceDataset([RETAIN]), RETAIN_ROWS)]


def log_probs(model: Any, data: Any, row: int) -> Any:
    """Log-probability of each labelled token of one sequence, one sequence at a time: no padding, no batching."""
    import torch

    ids, prompt = data.row(row)
    tokens = torch.from_numpy(ids.astype(np.int64))
    hidden = model(tokens[None], None, None).squeeze(1)
    table = model.logits(hidden).log_softmax(-1)
    return table[torch.arange(prompt - 1, len(ids) - 1), tokens[prompt:]]


def gradient(model: Any, loss: Any) -> Any:
    import torch

    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(model.parameters()))]).double()


def npo(model: Any) -> Any:
    import torch

    ratios = [log_probs(model, FORGET, row).sum() - float(REFERENCE[row]) for row in FORGET_ROWS]
    return sum(2 / 0.1 * torch.log(1 + torch.exp(0.1 * rho)) for rho in ratios) / len(FORGET_ROWS)


def nll(model: Any) -> Any:
    import torch

    return -torch.cat([log_probs(model, RETAIN, row) for row in RETAIN_ROWS]).mean()


def ascent(model: Any) -> Any:
    import torch

    return torch.cat([log_probs(model, FORGET, row) for row in FORGET_ROWS]).mean()


CASES: dict[str, tuple[Loss, Callable[[Any], Any], Rule]] = {
    "graddiff": (GA(), ascent, WeightedSum(forget_weight=0.5, retain_weight=2.0)),
    "npo": (NPO(beta=0.1), npo, WeightedSum()),
    "blur-npo": (NPO(beta=0.1), npo, Blur(gamma=0.4)),
}


@pytest.mark.parametrize("separate", [False, True])
@pytest.mark.parametrize("method", CASES)
def test_a_step_equals_plain_autograd(alone: Any, method: str, separate: bool) -> None:
    import torch

    loss, formula, rule = CASES[method]
    t = trainer(alone)
    model = t.model
    f, r = formula(model), nll(model)
    forget, retain = gradient(model, f), gradient(model, r)
    if method == "blur-npo":
        u = 0.4 * forget + retain - (forget @ retain) / (forget @ forget) * forget
    else:
        u = rule.direction(None).forget * forget + rule.direction(None).retain * retain  # type: ignore[arg-type]
    before = torch.cat([p.detach().flatten() for p in model.parameters()]).double()

    result = t.step(terms(loss, NLL()), rule, rate=0.1, separate=separate)

    after = torch.cat([p.detach().flatten() for p in model.parameters()]).double()
    torch.testing.assert_close((before - after) / 0.1, u, atol=2e-5 * float(u.norm()), rtol=1e-5)
    assert result.losses["forget_loss"] == pytest.approx(f.item(), rel=1e-5)
    assert result.losses["retain_loss"] == pytest.approx(r.item(), rel=1e-5)
    assert result.update_norm == pytest.approx(float(u.norm()), rel=1e-5)
    if separate or rule.needs_products:
        assert result.products is not None
        assert math.sqrt(result.products.ff) == pytest.approx(float(forget.norm()), rel=1e-5)
        assert result.products.fr == pytest.approx(float(forget @ retain), rel=1e-4)
        assert math.sqrt(result.products.rr) == pytest.approx(float(retain.norm()), rel=1e-5)
    else:
        assert result.products is None


def test_micro_batches_do_not_change_the_step(alone: Any) -> None:
    import torch

    ends = []
    for micro in (1, 2, 5):
        t = trainer(alone)
        t.accumulator.micro_batch = micro
        t.step(terms(NPO(), NLL()), Blur(), rate=0.1, separate=False)
        ends.append(torch.cat([p.detach().flatten() for p in t.model.parameters()]))
    torch.testing.assert_close(ends[1], ends[0], atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(ends[2], ends[0], atol=1e-6, rtol=1e-5)


def test_adamw_equals_torch(alone: Any) -> None:
    import torch

    t = trainer(alone, name="adamw", betas=(0.8, 0.95), weight_decay=0.1, epsilon=1e-6)
    model = t.model
    mine = [p.detach().clone().requires_grad_() for p in model.parameters()]
    # Norms are not decayed, as in megatron-core.
    groups = [
        {"params": [p for p in mine if p.dim() > 1], "weight_decay": 0.1},
        {"params": [p for p in mine if p.dim() == 1], "weight_decay": 0.0},
    ]
    plain = torch.optim.AdamW(groups, betas=(0.8, 0.95), eps=1e-6)
    for rate in (0.01, 0.003):
        gradients = torch.autograd.grad(nll(model), list(model.parameters()))
        for p, g in zip(mine, gradients, strict=True):
            p.grad = g
        for group in plain.param_groups:
            group["lr"] = rate
        plain.step()
        t.step(terms(NLL(), NLL())[1:], WeightedSum(), rate=rate, separate=False)
    for p, q in zip(model.parameters(), mine, strict=True):
        torch.testing.assert_close(p.detach(), q.detach(), atol=2e-5, rtol=1e-4)


def test_clipping_bounds_the_direction(alone: Any) -> None:
    import torch

    free = trainer(alone).step(terms(NPO(), NLL()), Blur(), rate=0.1, separate=False)
    t = trainer(alone, clip_norm=free.update_norm / 4)
    before = torch.cat([p.detach().flatten() for p in t.model.parameters()])
    clipped = t.step(terms(NPO(), NLL()), Blur(), rate=0.1, separate=False)
    after = torch.cat([p.detach().flatten() for p in t.model.parameters()])
    assert clipped.update_norm == pytest.approx(free.update_norm / 4)
    assert float((before - after).norm()) / 0.1 == pytest.approx(clipped.update_norm, rel=1e-3)


def test_without_clipping_the_direction_reaches_the_optimizer_whole(alone: Any) -> None:
    t = trainer(alone)
    assert t.spec.clip_norm is None
    assert t.step(terms(NPO(), NLL()), Blur(gamma=100.0), rate=0.1, separate=False).update_norm > 10


def test_a_loss_that_is_not_finite_stops_before_the_weights_change(alone: Any) -> None:
    from megatron_ext.training.accumulator import NonFinite
    from megatron_ext.training.loss_terms import LossTerm

    t = trainer(alone)
    before = t.checksum()
    reference = np.full(10, -np.inf)
    bad = [LossTerm("forget_loss", NPO(), SequenceDataset([FORGET], reference), FORGET_ROWS), *terms(GA(), NLL())[1:]]
    with pytest.raises(NonFinite, match="rank 0"):
        t.step(bad, Blur(), rate=0.1, separate=False)
    assert (t.checksum() == before).all()


def fp64_all_reduces() -> tuple[list[int], int]:
    """Sizes of the fp64 all-reduces of one BLUR step on two tensor-parallel ranks; calls of megatron-core's norm."""
    import torch
    import torch.distributed as dist

    from megatron_ext.config import Layout, Runtime
    from megatron_ext.distributed import process_groups

    with process_groups.start(Runtime(device="cpu", layout=Layout(tensor=2))) as ranks:
        t = trainer(ranks)
        sizes: list[int] = []
        norms: list[None] = []
        original, norm = dist.all_reduce, t.optimizer.get_grad_norm

        def counted(tensor: Any, *args: Any, **kwargs: Any) -> Any:
            if tensor.dtype == torch.float64:
                sizes.append(tensor.numel())
            return original(tensor, *args, **kwargs)

        dist.all_reduce = counted
        t.optimizer.get_grad_norm = lambda: norms.append(None) or norm()
        t.step(terms(NPO(), NLL()), Blur(), rate=0.1, separate=False)
        dist.all_reduce = original
        return sizes, len(norms)


@pytest.mark.slow
def test_one_all_reduce_carries_every_scalar() -> None:
    # inner products, loss sums, the adapted weight, the wish to stop
    assert run_ranks(fp64_all_reduces, 2) == [([4 + 2 + 1 + 1], 0)] * 2


def broken_on_the_second_rank() -> str:
    import torch.distributed as dist

    from megatron_ext.config import Layout, Runtime
    from megatron_ext.distributed import process_groups
    from megatron_ext.training.accumulator import NonFinite

    class Broken(NLL):
        def __call__(self, inputs: Any) -> Any:
            return super().__call__(inputs) * (math.nan if dist.get_rank() == 1 else 1.0)

    with process_groups.start(Runtime(device="cpu", layout=Layout(data=2))) as ranks, pytest.raises(NonFinite) as error:
        trainer(ranks).step(terms(NPO(), Broken()), Blur(), rate=0.1)
    return str(error.value)


@pytest.mark.slow
def test_a_broken_loss_names_its_rank_not_those_its_gradient_reaches() -> None:
    said = "retain_loss is nan; first seen on rank 1 of 2 (tensor 0, pipeline 0, data 1)"
    assert run_ranks(broken_on_the_second_rank, 2) == [said] * 2


class Returning(Loss):
    """What a person's own loss may return by mistake."""

    name: Literal["returning"] = "returning"
    unit: ClassVar[Literal["token", "sequence"]] = "token"
    what: str

    def __call__(self, inputs: Any) -> Any:
        values_N = inputs.log_probs
        found: dict[str, Any] = {
            "each position": values_N,
            "one of a list": values_N.sum().reshape(1),
            "detached": values_N.sum().detach(),
            "nothing": None,
        }
        return found[self.what]


@pytest.mark.parametrize(
    ("what", "given"),
    [
        ("each position", r"a tensor of shape \[\d+\]"),
        ("one of a list", r"a tensor of shape \[1\]"),
        ("detached", "a number without a gradient"),
        ("nothing", "None"),
    ],
)
def test_a_loss_that_is_not_one_number_with_a_gradient_is_refused_by_name(alone: Any, what: str, given: str) -> None:
    t = trainer(alone)
    before = t.checksum()
    said = rf"forget_loss: 'returning' returned {given}; allowed: one number with a gradient, the sum"
    with pytest.raises(TypeError, match=said):
        t.step(terms(Returning(what=what), NLL()), WeightedSum(), rate=0.1)
    assert (t.checksum() == before).all()


class NoDirection(Rule):
    """A rule that takes gradients and makes nothing of them."""

    name: Literal["no-direction"] = "no-direction"

    def update(self, step: Any) -> None:
        step.measure()


class NoReturn(Rule):
    """A rule whose direction is not returned."""

    name: Literal["no-return"] = "no-return"

    def direction(self, products: Any) -> Any:
        Direction(1.0, 1.0)


@pytest.mark.parametrize(
    ("rule", "said"),
    [
        (
            NoDirection(),
            r"rule 'no-direction': its 'update' left no direction in the step",
        ),
        (NoReturn(), r"rule 'no-return': its 'direction' returned None; allowed: a Direction"),
    ],
)
def test_a_rule_without_a_direction_is_refused_by_name(alone: Any, rule: Rule, said: str) -> None:
    t = trainer(alone)
    before = t.checksum()
    with pytest.raises(TypeError, match=said):
        t.step(terms(GA(), NLL()), rule, rate=0.1)
    assert (t.checksum() == before).all()


def test_weights_that_are_not_finite_are_refused(alone: Any) -> None:
    import torch

    from megatron_ext.training.accumulator import NonFinite

    t = trainer(alone)
    t.refuse_broken_weights()
    with torch.no_grad():
        next(t.model.parameters())[0, 0] = math.inf
    with pytest.raises(NonFinite, match="were not written"):
        t.refuse_broken_weights()


def test_a_step_count_kept_in_parameter_groups_is_restored(alone: Any, tmp_path: Path) -> None:
    """As Transformer Engine's and Apex's optimizers keep it; torch's do not."""
    from megatron_ext.training.resume import Resume

    t = trainer(alone, name="adamw")
    t.step(terms(NPO(), NLL()), Blur(), rate=0.1, separate=False)
    resume = Resume(tmp_path, {"run": 1}, t)
    assert resume.restore() == 0
    resume.log.write({"step": 0})
    for group in t.optimizer.param_groups:
        group["step"] = 7
    resume.save(1)
    for group in t.optimizer.param_groups:
        group["step"] = 0
    before = t.checksum()
    assert Resume(tmp_path, {"run": 1}, t).restore() == 1
    assert [group["step"] for group in t.optimizer.param_groups] == [7] * len(t.optimizer.param_groups)
    assert (t.checksum() == before).all()
