"""Each loss on logits against its formula, written out in plain torch sequence by sequence: value and gradient."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, Literal

import pytest
from pydantic import ValidationError

from megatron_ext.data.sequences import Sequences
from megatron_ext.losses import LOSSES
from megatron_ext.losses.ce_u import CEU
from megatron_ext.losses.dpo import DPO
from megatron_ext.losses.ga import GA
from megatron_ext.losses.ihl import IHL
from megatron_ext.losses.kl import KL
from megatron_ext.losses.logit_margin import LogitMargin
from megatron_ext.losses.me import ME
from megatron_ext.losses.nll import NLL
from megatron_ext.losses.npo import NPO
from megatron_ext.losses.npo_muse_logits import NPOMuseLogits
from megatron_ext.losses.satimp import SatImp
from megatron_ext.losses.simnpo import SimNPO
from megatron_ext.losses.simnpo_muse_logits import SimNPOMuseLogits
from megatron_ext.losses.undial import Undial
from megatron_ext.losses.unilogit import Unilogit
from megatron_ext.losses.wga import WGA

HIDDEN, VOCABULARY, PADDING = 6, 13, 3
# Token ids and the length of the prompt: three sequences, one of them with a single labelled token, and for each an
# alternative answer to its prompt.
ROWS = [([3, 1, 4, 1, 5, 9, 2], 3), ([6, 5, 3, 5], 3), ([8, 9, 7, 9, 3, 12], 1)]
ALTERNATIVES = [([3, 1, 4, 10, 11], 3), ([6, 5, 3, 0, 12, 2], 3), ([8, 2], 1)]
REFERENCE = [-9.5, -3.0, -14.0, -6.5, -7.0, -2.5]


@dataclass
class Answer:
    """One sequence in plain torch: ``z`` and ``frozen`` ``[tokens, vocabulary]``, logits at every token of it."""

    z: Any
    reference_model: Any
    ids: list[int]
    prompt: int
    reference: float

    @property
    def places(self) -> range:
        """Where labelled tokens are; each is predicted at the place before."""
        return range(self.prompt, len(self.ids))

    @property
    def log_probs(self) -> list[Any]:
        return [self.z[t - 1].log_softmax(-1)[self.ids[t]] for t in self.places]


def world() -> tuple[Any, Any, Any]:
    """fp64: hidden states ``[rows, tokens, HIDDEN]``, of the model and of the one before unlearning as one tensor of
    two, and the two output layers ``[2, VOCABULARY, HIDDEN]``."""
    import torch

    generator = torch.Generator().manual_seed(0)
    count, longest = len(ROWS + ALTERNATIVES), max(len(ids) for ids, _ in ROWS + ALTERNATIVES)
    hidden = torch.randn(2, count, longest, HIDDEN, generator=generator, dtype=torch.float64)
    output = torch.randn(2, VOCABULARY, HIDDEN, generator=generator, dtype=torch.float64) * 0.5
    return hidden[0].clone().requires_grad_(), hidden[1], output


def answers(hidden: Any, rows: list[int]) -> list[Answer]:
    _, reference_model, output = world()
    found = []
    for row in rows:
        ids, prompt = (ROWS + ALTERNATIVES)[row]
        z, before = (h[row, : len(ids)] @ w.T for h, w in zip((hidden, reference_model), output, strict=True))
        found.append(Answer(z, before, ids, prompt, REFERENCE[row]))
    return found


class StubModel:
    """The output layer alone: a matrix product, and columns that pad the vocabulary."""

    def __init__(self, output: Any) -> None:
        self.output = output

    def logits(self, hidden: Any) -> Any:
        import torch

        return torch.cat([hidden @ self.output.T, hidden.new_full((len(hidden), PADDING), -math.inf)], dim=-1)


def loss_inputs(loss: Any, alone: Any, hidden: Any, rows: list[int]) -> Any:
    """What the trainer gives the loss for a micro-batch of ``rows``; -1 stands for one that only fills it."""
    import torch

    from megatron_ext.data.collate import SequenceDataset
    from megatron_ext.distributed.vocab_parallel import VocabularyShards
    from megatron_ext.model.loss_inputs import LossInputs

    _, reference_model, output = world()
    dataset = SequenceDataset([Sequences.pack(ROWS), Sequences.pack(ALTERNATIVES)], torch.tensor(REFERENCE).numpy())
    batch = dataset.collate(rows, torch.device("cpu"), loss.input_positions)
    width = batch.tokens.size(1)

    def at_positions(values: Any) -> Any:
        of_rows = [values[row] if row >= 0 else 0 * values[0] for row in rows]
        return torch.stack(of_rows, dim=1)[:width].flatten(0, 1)[batch.index]

    before = (
        (at_positions(reference_model), StubModel(output[1]).logits) if loss.needs_reference_model else (None, None)
    )
    shards = VocabularyShards(alone.tensor_group, VOCABULARY)
    return LossInputs(at_positions(hidden), batch, StubModel(output[0]).logits, shards, "", *before)


def value_and_gradient(loss: Any, alone: Any, filling: int = 0) -> tuple[Any, Any]:
    """The mean over the loss's units, and its gradient by the hidden states."""
    from megatron_ext.data.collate import SequenceDataset

    hidden = world()[0]
    rows = [0, 1, 2] + [-1] * filling
    if loss.needs_preferred_answers:
        rows += [3, 4, 5] + [-1] * filling
    dataset = SequenceDataset([Sequences.pack(ROWS)])
    value = loss(loss_inputs(loss, alone, hidden, rows)) / loss.units(dataset.label_counts, dataset.lengths)
    value.backward()
    return value.detach(), hidden.grad


# The formulas: means over the three sequences, or over their 4 + 1 + 5 labelled tokens.


def over_tokens(of_place: Callable[[Answer, int], Any]) -> Callable[[list[Answer]], Any]:
    """The mean over all labelled tokens of a function of the answer and the token's place in it."""
    return lambda found: sum(of_place(a, t) for a in found[:3] for t in a.places) / 10


def log_p(a: Answer, t: int) -> Any:
    return a.z[t - 1].log_softmax(-1)[a.ids[t]]


def p(a: Answer, t: int) -> Any:
    return log_p(a, t).detach().exp()


def log_sigmoid(value: Any) -> Any:
    return -(1 + (-value).exp()).log()


def npo(beta: float) -> Callable[[list[Answer]], Any]:
    return lambda found: sum(-2 / beta * log_sigmoid(-beta * (sum(a.log_probs) - a.reference)) for a in found[:3]) / 3


def simnpo(beta: float, delta: float) -> Callable[[list[Answer]], Any]:
    return lambda found: (
        sum(-2 / beta * log_sigmoid(beta * (-sum(a.log_probs) / len(a.log_probs) - delta)) for a in found[:3]) / 3
    )


def dpo(beta: float) -> Callable[[list[Answer]], Any]:
    def formula(found: list[Answer]) -> Any:
        rho = [sum(a.log_probs) - a.reference for a in found]
        return sum(-2 / beta * log_sigmoid(beta * (rho[b + 3] - rho[b])) for b in range(3)) / 3

    return formula


def undial(beta: float) -> Callable[[list[Answer]], Any]:
    def at(a: Answer, t: int) -> Any:
        lowered = a.reference_model[t - 1].clone()
        lowered[a.ids[t]] -= beta
        return -(lowered.softmax(-1) * a.z[t - 1].log_softmax(-1)).sum()

    return over_tokens(at)


def ce_u(found: list[Answer]) -> Any:
    terms = []
    for a in found[:3]:
        for t in a.places[1:]:
            others = a.z[t - 1].detach().exp()
            others[a.ids[t]] = 0
            terms.append(-(others / others.sum() * a.z[t - 1].log_softmax(-1)).sum())
    return sum(terms) / 7


def without(a: Answer, t: int, values: Any) -> Any:
    """Those of all tokens but the labelled one."""
    import torch

    return torch.cat([values[: a.ids[t]], values[a.ids[t] + 1 :]])


def ihl(a: Answer, t: int) -> Any:
    probabilities = a.z[t - 1].softmax(-1)
    return 1 + probabilities[a.ids[t]] - without(a, t, probabilities).max()


def unilogit(divergence: str) -> Callable[[Answer, int], Any]:
    def at(a: Answer, t: int) -> Any:
        uniform = a.z[t - 1].detach().clone()
        uniform[a.ids[t]] = without(a, t, uniform).logsumexp(-1) - math.log(VOCABULARY - 1)
        q, p = uniform.log_softmax(-1), a.z[t - 1].log_softmax(-1)
        return (p.exp() * (p - q)).sum() if divergence == "reverse" else (q.exp() * (q - p)).sum()

    return at


def margin(row: Any) -> Any:
    return (row.max() - row.sum() / VOCABULARY) ** 2


def over_positions(of_place: Callable[[Answer, int], Any]) -> Callable[[list[Answer]], Any]:
    """As ``over_tokens``, but of every token's place after it."""
    return lambda found: (
        sum(of_place(a, t + 1) for a in found[:3] for t in range(len(a.ids))) / sum(len(a.ids) for a in found[:3])
    )


def kl(a: Answer, t: int) -> Any:
    before, now = a.reference_model[t - 1].log_softmax(-1), a.z[t - 1].log_softmax(-1)
    return (before.exp() * (before - now)).sum()


def muse(beta: float) -> Callable[[Answer, int], Any]:
    return lambda a, t: -2 / beta * log_sigmoid(beta * (a.reference_model[t - 1] - a.z[t - 1])).sum() / VOCABULARY


def simple_muse(beta: float, delta: float) -> Callable[[Answer, int], Any]:
    return lambda a, t: -2 / beta * log_sigmoid(beta * (-a.z[t - 1] - delta)).sum() / VOCABULARY


def by_sequence(shift: int) -> Callable[[list[Answer]], Any]:
    return lambda found: sum(sum(margin(a.z[t - shift]) for t in a.places) / len(a.places) for a in found[:3]) / 3


CASES: list[tuple[Any, Callable[[list[Answer]], Any]]] = [
    (NLL(), over_tokens(lambda a, t: -log_p(a, t))),
    (GA(), over_tokens(log_p)),
    *((NPO(beta=beta), npo(beta)) for beta in (0.05, 0.1, 1.0)),
    *((SimNPO(beta=beta, delta=delta), simnpo(beta, delta)) for beta, delta in ((4.5, 0.0), (2.5, 0.8))),
    *((DPO(beta=beta), dpo(beta)) for beta in (0.1, 0.5)),
    *((Undial(beta=beta), undial(beta)) for beta in (10.0, 1.0)),
    *((WGA(beta=beta), over_tokens(lambda a, t, b=beta: p(a, t) ** b * log_p(a, t))) for beta in (1.0, 0.3)),
    (SatImp(), over_tokens(lambda a, t: p(a, t) ** 5 * (1 - p(a, t)) * log_p(a, t))),
    (SatImp(beta1=0.5, beta2=2.0), over_tokens(lambda a, t: p(a, t) ** 0.5 * (1 - p(a, t)) ** 2 * log_p(a, t))),
    (CEU(), ce_u),
    (IHL(), over_tokens(ihl)),
    (ME(), over_tokens(lambda a, t: -math.log(VOCABULARY) - a.z[t - 1].log_softmax(-1).mean())),
    *((Unilogit(divergence=how), over_tokens(unilogit(how))) for how in ("reverse", "forward")),
    (LogitMargin(), by_sequence(1)),
    (LogitMargin(mask="labelled"), by_sequence(0)),
    (LogitMargin(reduction="token"), over_tokens(lambda a, t: margin(a.z[t - 1]))),
    (LogitMargin(mask="labelled", reduction="token"), over_tokens(lambda a, t: margin(a.z[t]))),
    (KL(), over_tokens(kl)),
    (KL(positions="all"), over_positions(kl)),
    *((NPOMuseLogits(beta=beta), over_positions(muse(beta))) for beta in (0.1, 0.7)),
    (NPOMuseLogits(positions="labelled"), over_tokens(muse(0.1))),
    (SimNPOMuseLogits(beta=0.7, delta=0.3), over_positions(simple_muse(0.7, 0.3))),
]


@pytest.mark.parametrize(("loss", "formula"), CASES, ids=[str(loss.model_dump()) for loss, _ in CASES])
def test_formula(loss: Any, formula: Callable[[list[Answer]], Any], alone: Any) -> None:
    import torch

    hidden = world()[0]
    expected = formula(answers(hidden, list(range(6))))
    expected.backward()
    value, gradient = value_and_gradient(loss, alone)
    # one loss and the cached references are fp32
    assert value.item() == pytest.approx(expected.item(), rel=1e-6)
    largest = float(hidden.grad.abs().max())
    torch.testing.assert_close(gradient, hidden.grad, rtol=1e-5, atol=1e-6 * largest)
    assert largest > 1e-6


@pytest.mark.parametrize("loss", [loss for loss, _ in CASES], ids=[str(loss.model_dump()) for loss, _ in CASES])
def test_rows_that_only_fill_a_batch_count_for_nothing(loss: Any, alone: Any) -> None:
    import torch

    value, gradient = value_and_gradient(loss, alone)
    filled, same = value_and_gradient(loss, alone, filling=2)
    assert filled.item() == pytest.approx(value.item(), rel=1e-12)
    torch.testing.assert_close(same, gradient, rtol=1e-9, atol=1e-12)
    hidden = world()[0]
    empty = loss(loss_inputs(loss, alone, hidden, [-1] * (4 if loss.needs_preferred_answers else 2)))
    empty.backward()  # as on a rank that has run out of rows
    assert empty.item() == 0 and hidden.grad.eq(0).all()


@pytest.mark.parametrize("loss", [loss for loss, _ in CASES], ids=[str(loss.model_dump()) for loss, _ in CASES])
def test_logits_of_few_positions_at_a_time_give_the_same(
    loss: Any, alone: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a GPU does where a micro-batch's logits would not fit: never more than two positions' exist."""
    import torch

    from megatron_ext.model import loss_inputs as module

    value, gradient = value_and_gradient(loss, alone)
    made, logits = [], StubModel.logits
    monkeypatch.setattr(StubModel, "logits", lambda self, hidden: made.append(len(hidden)) or logits(self, hidden))
    monkeypatch.setattr(module, "LOGITS", 2 * VOCABULARY)
    in_parts, same = value_and_gradient(loss, alone)
    assert len(made) > 4 and max(made) == 2
    assert in_parts.item() == pytest.approx(value.item(), rel=1e-12)
    torch.testing.assert_close(same, gradient, rtol=1e-9, atol=1e-12)


def test_every_loss_on_logits_has_a_formula_here() -> None:
    assert {loss.name for loss, _ in CASES} == {name for name, cls in LOSSES.items() if cls.sees == "logits"}


def test_every_loss_is_registered_under_its_name() -> None:
    assert all(cls.key() == name == cls().name for name, cls in LOSSES.items())


@pytest.mark.parametrize(
    ("kind", "values", "message"),
    [
        (CEU, {"beta": 1.0}, "Extra inputs"),
        (NPO, {"beta": math.nan}, "finite number"),
    ],
)
def test_unknown_keys_and_what_is_no_number_are_refused(kind: Any, values: dict[str, Any], message: str) -> None:
    """Bounds: tests/pipeline/config/test_hyper_parameters.py."""
    with pytest.raises(ValidationError, match=message) as caught:
        kind(**values)
    assert [error["loc"] for error in caught.value.errors()] == [tuple(values)]


def test_gradient_ascent_is_the_limit_of_the_weighted_losses(alone: Any) -> None:
    expected, _ = value_and_gradient(GA(), alone)
    for loss in (WGA(beta=0.0), SatImp(beta1=0.0, beta2=0.0)):
        assert value_and_gradient(loss, alone)[0].item() == pytest.approx(expected.item(), rel=1e-12)


@pytest.mark.parametrize("divergence", ["reverse", "forward"])
def test_unilogit_of_a_certain_token_is_finite(divergence: Literal["reverse", "forward"], alone: Any) -> None:
    """The logarithm of what a memorised token leaves to the others ends at 0, in fp32 soon."""
    import torch

    from megatron_ext.distributed.vocab_parallel import VocabularyShards

    shards = VocabularyShards(alone.tensor_group, 4)
    logits = torch.tensor([[60.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]], requires_grad=True)
    known = SimpleNamespace(vocabulary=shards, log_probs=shards.target_log_probs(logits, torch.tensor([0, 2])))
    value = Unilogit(divergence=divergence)(known)  # type: ignore[arg-type]
    value.backward()
    assert value.isfinite() and logits.grad is not None and logits.grad.isfinite().all()
    assert logits.grad[1].abs().max() < 1e-6, "uniform already"
    if divergence == "reverse":
        assert value.item() == pytest.approx(math.log(4), rel=1e-4)


def test_a_batch_without_a_term_is_an_error_that_says_so() -> None:
    from megatron_ext.data.collate import SequenceDataset
    from megatron_ext.training.loss_terms import LossTerm

    dataset = SequenceDataset([Sequences.pack(ROWS)])
    assert LossTerm("forget_loss", CEU(), dataset, [0, 1]).units == 3
    with pytest.raises(
        ValueError, match=r"forget_loss: 'ce-u' has nothing to average over .* at most 1 labelled token"
    ):
        _ = LossTerm("forget_loss", CEU(), dataset, [1, 1]).units
