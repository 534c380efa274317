"""A step on ranks without contents, beside the plan of it, and what BLUR adds to a plain sum."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from megatron_ext.specs import UnlearnSpec
from pipeline.config import memory
from pipeline.config.sizing import Shape
from pipeline.config.workload import workload
from tests.support.distributed import run_ranks
from tests.support.worlds import CONFIG

LENGTH = 256
LAYOUT = {"tensor": 2, "pipeline": 2, "data": 2, "distributed_optimizer": True, "sequence_parallel": True}
UNTIED = CONFIG | {"num_hidden_layers": 2, "tie_word_embeddings": False}
SIZES = {
    "1 B": UNTIED | {"hidden_size": 4096, "intermediate_size": 14336, "vocab_size": 32000},
    "3 B": UNTIED | {"hidden_size": 8192, "intermediate_size": 28672, "vocab_size": 64000},
}
RULES: dict[str, dict[str, Any]] = {
    "sum": {"name": "weighted-sum"},
    "blur": {"name": "blur", "gamma": 0.5},
    "pcgrad": {"name": "pcgrad", "scope": "tensor"},
    "offloaded": {"name": "blur", "gamma": 0.5},
    "preferred": {"name": "weighted-sum"},
    "rows": {"name": "weighted-sum"},
    "rows-kept": {"name": "weighted-sum"},
}
# Rows of a step and of a micro-batch, where activations and logits are to be much of a step.
ROWS = {"preferred": (8, 4), "rows": (64, 32), "rows-kept": (64, 32)}
# A row and its preferred answer in each forward pass, and all that they keep.
PREFERRED = {"preferred_answers": "p", "preferred_answers_logps": "q"}


def spec(rule: str) -> UnlearnSpec:
    memory = {"gradients": "bf16", "optimizer": "offload"} if rule == "offloaded" else {}
    preferred, (rows, micro) = rule == "preferred", ROWS.get(rule, (4, 1))
    topic = {"forget_data": "f", "retain_data": "r", "reference_logps": "l", "retain_reference_logps": "k"}
    return UnlearnSpec.model_validate(
        {
            "checkpoint": "model",
            "output": "out",
            "topics": [topic | (PREFERRED if preferred else {})],
            "forget_loss": {"name": "dpo" if preferred else "npo", "beta": 0.1},
            "retain_loss": {"name": "nll"},
            "rule": RULES[rule],
            "epochs": 1.0,
            "batching": {"global_batch": rows, "micro_batch": micro},
            "optimizer": {"learning_rate": 1e-5},
            "runtime": {
                "layout": LAYOUT,
                "precision": "bf16",
                "recompute_activations": rule not in ("preferred", "rows-kept"),
                "device": "cpu",
                "memory": memory,
            },
        }
    )


def every_step() -> dict[str, list[Any]]:
    """Steps of rules on a rank of each stage, and of BLUR on the last rank; on the larger model on the first rank."""
    from megatron_ext.simulation.steps import distinct_ranks, simulate

    cases = [("sum", "1 B", [0, 4]), ("blur", "1 B", [0, 4, 7]), ("pcgrad", "1 B", [4]), ("offloaded", "1 B", [4])]
    cases += [("sum", "3 B", [0]), ("blur", "3 B", [0]), ("preferred", "1 B", [0, 4])]
    cases += [("rows", "1 B", [0, 4]), ("rows-kept", "1 B", [0, 4])]
    assert distinct_ranks(spec("sum")) == [0, 4]
    return {
        f"{rule} {size}": [simulate(spec(rule), SIZES[size], LENGTH, rank) for rank in ranks]
        for rule, size, ranks in cases
    }


@pytest.fixture(scope="module")
def steps() -> dict[str, list[Any]]:
    (found,) = run_ranks(every_step, 1, timeout=240)
    return found


@pytest.mark.slow
def test_what_ranks_hold_is_what_was_planned(steps: dict[str, list[Any]]) -> None:
    """The most that exists at a time, and each part of it, within 5 % of the plan."""
    for name, found in steps.items():
        rule, size = name.split(" ", 1)
        step, shape = spec(rule), Shape.of(SIZES[size])
        work = workload(step, gpus=True)
        lasting = memory.lasting(work, step.runtime, shape)
        for each in found:
            for part in ("weights", "gradients", "optimizer", "host"):
                assert getattr(lasting[each.stage], part) == pytest.approx(getattr(each, part), rel=0.05), (name, part)
        planned = memory.training(work, step.runtime, shape, LENGTH).total
        assert planned == pytest.approx(max(each.peak for each in found), rel=0.05), name


@pytest.mark.slow
def test_blur_adds_a_few_numbers_and_one_vector_whatever_the_size(steps: dict[str, list[Any]]) -> None:
    """Beside a plain sum: the one all-reduce of all ranks has three numbers more; a gradient is reduced once more; and
    there is one vector of the rank's piece of it. All other messages are the same."""
    for size in SIZES:
        for plain, blur in zip(steps[f"sum {size}"], steps[f"blur {size}"], strict=False):
            extra = Counter(blur.messages)
            extra.subtract(plain.messages)
            norms = 4 * sum(shape[0] * count for (_, shape), count in blur.shapes.items() if len(shape) == 1)
            assert {(m.kind, m.group, m.size): count for m, count in extra.items() if count} == {
                ("all-reduce", "world", 8 * 5): -1,
                ("all-reduce", "world", 8 * 8): 1,
                ("reduce-scatter", "data", blur.gradients): 1,
                ("all-reduce", "tensor", norms): 1,
            }
            assert blur.vectors == blur.gradients // LAYOUT["data"] and plain.vectors == 0


@pytest.mark.slow
def test_ranks_of_a_stage_are_alike(steps: dict[str, list[Any]]) -> None:
    """The last rank of a stage holds and exchanges what its first does, but for a few numbers: its piece of the
    optimizer's state may begin within another parameter."""
    _, first, last = steps["blur 1 B"]
    for part in ("stage", "shapes", "weights", "gradients", "vectors", "messages"):
        assert getattr(first, part) == getattr(last, part), part
    assert first.peak == pytest.approx(last.peak, abs=1000) and first.stage == 1
