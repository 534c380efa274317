"""Steps on mixtures of experts, whose experts are spread over ranks in two ways: the numbers of one process."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from megatron_ext.config import Layout, Optimizer, Runtime, TrainableLayers
from megatron_ext.data.collate import SequenceDataset
from megatron_ext.losses.nll import NLL
from megatron_ext.losses.npo import NPO
from megatron_ext.losses.rmu import RMU
from megatron_ext.updates.blur import Blur
from megatron_ext.updates.gru import GRU
from megatron_ext.updates.pcgrad import PCGrad
from megatron_ext.updates.primal_dual import PrimalDual
from megatron_ext.updates.sago import SAGO
from megatron_ext.updates.weighted_sum import WeightedSum
from tests.support.distributed import run_ranks
from tests.support.worlds import CONFIG, sequences

FORGET, RETAIN = sequences(10, 1), sequences(40, 2)
REFERENCE = np.linspace(-60.0, -20.0, 10)
FORGET_ROWS, RETAIN_ROWS = [0, 3, 4, 7, 9], [1, 5, 8, 20, 33]
QWEN = {
    "architectures": ["Qwen3MoeForCausalLM"],
    "model_type": "qwen3_moe",
    "head_dim": 8,
    "num_key_value_heads": 4,
    "num_experts": 6,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
}
MIXTRAL = {
    "architectures": ["MixtralForCausalLM"],
    "model_type": "mixtral",
    "num_key_value_heads": 4,
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
    "tie_word_embeddings": False,
}
# By number of ranks: every case with whole experts on either of two ranks, and with experts on two pairs of ranks,
# split in each; a few with sequence parallelism and stages.
LAYOUTS: dict[int, list[dict[str, Any]]] = {
    2: [{"tensor": 2, "expert": 2}, {"tensor": 2, "expert": 2, "sequence_parallel": True}],
    4: [{"tensor": 4, "expert": 2}, {"tensor": 2, "expert": 2, "pipeline": 2}],
}
RULES = [
    Blur(gamma=0.5),
    PCGrad(scope="tensor"),
    PrimalDual(dual=1.0, dual_rate=0.1, epsilon=1.0),
    GRU(),
    SAGO(),
]
Case = tuple[dict[str, Any], int | None]  # a model, and a rule's place; None for RMU on two layers
FEW: list[Case] = [(QWEN, 0), (MIXTRAL, 0), (QWEN, None)]
CASES: list[Case] = [*FEW, *((QWEN, i) for i in range(1, len(RULES)))]


def cases(layout: dict[str, Any]) -> list[Case]:
    return FEW if {"sequence_parallel", "pipeline"} & layout.keys() else CASES


def step(ranks: Any, changes: dict[str, Any], rule: int | None) -> tuple[list[float], dict[str, Any]]:
    """Two steps of NPO under a rule, or of RMU on the matrices of one layer: what they report, and the shares of this
    rank's tensors after them."""
    from megatron_ext.checkpoint import mapping, reading, tensor_sources
    from megatron_ext.model import build as factory
    from megatron_ext.training.loss_terms import LossTerm
    from megatron_ext.training.trainer import Trainer

    config, training = {**CONFIG, "num_hidden_layers": 2, **changes}, Runtime(layout=ranks.layout)
    scope = TrainableLayers(up_to=1, layers_to_transform=[0, 1], target_modules=["gate_up_proj", "down_proj"])
    model = factory.build(config, ranks, scope if rule is None else None, training)
    reading.fill(model, ranks, tensor_sources.InitialValues(config, 3))
    trainer = Trainer(model, ranks, Optimizer(learning_rate=0.05, epsilon=0.1), 5)
    forget = NPO(beta=0.1) if rule is not None else RMU()
    terms = [LossTerm("forget_loss", forget, SequenceDataset([FORGET], REFERENCE), FORGET_ROWS, topic="all")]
    if rule is not None:
        terms.append(LossTerm("retain_loss", NLL(), SequenceDataset([RETAIN]), RETAIN_ROWS))
    chosen: Any = WeightedSum() if rule is None else RULES[rule]
    state, kept = chosen.start(None), dict[str, Any]()
    reports: list[float] = []
    for _ in range(2):
        taken = trainer.step(terms, chosen, rate=0.05, state=state, kept=kept)
        reports += [taken.update_norm, *taken.losses.values()]
        if taken.products is not None and rule is not None:
            reports += [taken.products.ff, taken.products.fr, taken.products.rr]
    shares, parameters = {}, dict(model.named_parameters())
    for entry in mapping.entries(config, ranks.layout, ranks.pipeline_rank, model.trainable_layers):
        value = entry.find(parameters).detach()
        for part in entry.parts(ranks.tensor_rank, ranks.layout.tensor):
            shares[part.name] = (part.index, part.place(value).clone().numpy())
    return reports, shares


def steps(layouts: list[dict[str, Any]]) -> list[list[tuple[list[float], dict[str, Any]]]]:
    """Every case at every layout, in one start of the processes."""
    from megatron_ext.distributed import process_groups

    found = []
    for layout in layouts:
        with process_groups.start(Runtime(device="cpu", layout=Layout(**layout), timeout_seconds=60.0)) as ranks:
            found.append([step(ranks, *case) for case in cases(layout)])
    return found


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_steps_are_those_of_one_process(alone: Any) -> None:
    """Inner products count each expert's parameters once, and gradients meet where ranks have their parts of them."""
    expected = [step(alone, *case) for case in CASES]
    for count, layouts in LAYOUTS.items():
        for rank in run_ranks(steps, count, layouts):
            for layout, results in zip(layouts, rank, strict=True):
                for case, (reports, shares), (true, whole) in zip(cases(layout), results, expected, strict=False):
                    assert reports == pytest.approx(true, rel=1e-5, abs=1e-9), (layout, case)
                    for name, (index, values) in shares.items():
                        wanted = whole[name][1].reshape(-1, *whole[name][1].shape[-1:]) if index else whole[name][1]
                        wanted = wanted[index] if index else wanted
                        np.testing.assert_allclose(values.reshape(wanted.shape), wanted, atol=2e-6, err_msg=name)
