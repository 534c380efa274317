"""Steps of every family with parts of its own, experts spread over ranks among them: the numbers of one process."""

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
GPT_OSS = {
    "architectures": ["GptOssForCausalLM"],
    "model_type": "gpt_oss",
    "head_dim": 8,
    "num_key_value_heads": 4,
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
    "sliding_window": 7,
    "rope_theta": 5000.0,
    "rope_scaling": {"rope_type": "default"},
    "tie_word_embeddings": False,
}
DEEPSEEK = {
    "architectures": ["DeepseekV2ForCausalLM"],
    "model_type": "deepseek_v2",
    "num_key_value_heads": None,
    "q_lora_rank": None,
    "kv_lora_rank": 12,
    "qk_nope_head_dim": 6,
    "qk_rope_head_dim": 4,
    "v_head_dim": 5,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
    "n_shared_experts": 2,
    "first_k_dense_replace": 1,
}
GEMMA2 = {"architectures": ["Gemma2ForCausalLM"], "model_type": "gemma2", "head_dim": 8, "sliding_window": 7}
GEMMA3 = {
    "architectures": ["Gemma3ForCausalLM"],
    "model_type": "gemma3_text",
    "head_dim": 10,
    "rope_local_base_freq": 500.0,
    "sliding_window": 7,
}
PHI = {"architectures": ["Phi3ForCausalLM"], "model_type": "phi3", "partial_rotary_factor": 0.75, "head_dim": 16}
DENSE = [(GEMMA2, 0), (GEMMA3, 0), (PHI, 0)]
# By number of ranks: every case with experts on two pairs of ranks, split in each; a few with sequence parallelism and
# stages. At plain layouts of two ranks every method runs on every family, in ``tests/families``.
LAYOUTS: dict[int, list[dict[str, Any]]] = {
    2: [
        {"tensor": 2, "expert": 2, "sequence_parallel": True},
        {"tensor": 2, "sequence_parallel": True},
    ],
    4: [{"tensor": 4, "expert": 2}, {"tensor": 2, "expert": 2, "pipeline": 2}],
}
RULES = [
    Blur(gamma=0.5),
    PCGrad(scope="tensor"),
    PrimalDual(dual=1.0, dual_rate=0.1, epsilon=1.0),
    GRU(),
    SAGO(),
]
Share = tuple[str, tuple[slice, ...], Any]  # a tensor's name, which part of it, and values
Case = tuple[dict[str, Any], int | None]  # a model, and a rule's place; None for RMU on two layers
FEW: list[Case] = [(QWEN, 0), (MIXTRAL, 0), (QWEN, None), (GPT_OSS, 0), (DEEPSEEK, 0)]
CASES: list[Case] = [*FEW, *((QWEN, i) for i in range(1, len(RULES))), (GPT_OSS, 1), (GPT_OSS, None)]
CASES += [(DEEPSEEK, None), *DENSE]


def cases(layout: dict[str, Any]) -> list[Case]:
    if "expert" not in layout:
        return DENSE
    return FEW if {"sequence_parallel", "pipeline"} & layout.keys() else CASES[: -len(DENSE)]


def step(ranks: Any, changes: dict[str, Any], rule: int | None) -> tuple[list[float], list[Share]]:
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
            reports += [taken.products.ff, taken.products.cosine, taken.products.rr]
    shares, parameters = list[Share](), dict(model.named_parameters())
    for entry in mapping.entries(config, ranks.layout, ranks.pipeline_rank, model.trainable_layers):
        value = entry.find(parameters).detach()
        for part in entry.parts(ranks.tensor_rank, ranks.layout.tensor):
            shape = np.empty(entry.shapes[part.name])[part.index].shape
            shares.append((part.name, part.index, part.place(value).reshape(shape).clone().numpy()))
    return reports, shares


def steps(layouts: list[dict[str, Any]]) -> list[list[tuple[list[float], list[Share]]]]:
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
    expected = [(reports, assembled(shares)) for reports, shares in (step(alone, *case) for case in CASES)]
    for count, layouts in LAYOUTS.items():
        for rank in run_ranks(steps, count, layouts):
            for layout, results in zip(layouts, rank, strict=True):
                for case, (reports, shares) in zip(cases(layout), results, strict=True):
                    true, whole = expected[CASES.index(case)]
                    assert reports == pytest.approx(true, rel=1e-5, abs=1e-6), (layout, case)
                    for name, index, values in shares:
                        wanted = whole[name][index]
                        np.testing.assert_allclose(values, wanted, atol=2e-6, err_msg=f"{name} at {layout}")


def assembled(shares: list[Share]) -> dict[str, Any]:
    """Whole tensors of one process's shares, which are those of experts where a tensor has several."""
    found: dict[str, list[Any]] = {}
    for name, _, values in shares:
        found.setdefault(name, []).append(values)
    return {name: np.concatenate(parts) if len(parts) > 1 else parts[0] for name, parts in found.items()}
