"""That a GPU computes what the CPU does: logits, methods, answers, resuming, and what only a GPU has two ways for."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import signal
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from megatron_ext.config import Layout
from tests.gpu import cases
from tests.gpu.conftest import DEVICE, REFERENCES
from tests.support import inference_cases, tiny
from tests.support.distributed import run_ranks

pytestmark = pytest.mark.gpu

FP32, BF16 = 1e-4, 2e-2
Record = Any  # pytest's record_property


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Models and methods are those that there are references of; all of them where there are none yet."""
    made = REFERENCES / "references.json"
    known = json.loads(made.read_text()) if made.exists() else None
    models, methods = (known["models"], list(known["logs"]["fp32"])) if known else (tiny.MODELS, list(cases.CASES))
    if "model" in metafunc.fixturenames:
        metafunc.parametrize("model", models)
    if "answering" in metafunc.fixturenames:
        metafunc.parametrize("answering", [name for name in inference_cases.MODELS if name in models])
    if {"method", "precision"} <= set(metafunc.fixturenames):
        metafunc.parametrize(("method", "precision"), [(name, p) for name in methods for p in cases.precisions(name)])


def logits(folder: Path, ranks: Any) -> Any:
    """``[2, LENGTH, V]``, on the CPU in fp32."""
    import torch

    from megatron_ext.checkpoint import reading

    model, ids = reading.load(folder, ranks), tiny.token_ids().to(ranks.device)
    with torch.no_grad():
        hidden = model(ids, None, None)
        found = model.logits(hidden.transpose(0, 1).reshape(ids.numel(), -1))
    return found.view(*ids.shape, -1)[..., : tiny.VOCABULARY].float().cpu()


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_logits_are_those_of_transformers(
    model: str, precision: str, ranks: Any, half: Any, references: Path, record_property: Record
) -> None:
    """In bf16 as near to its fp32 as its own bf16."""
    import torch

    wanted = torch.load(references / "models" / f"{model}.pt")
    found = logits(references / "models" / precision / model, ranks if precision == "fp32" else half)
    if precision == "fp32":
        error, bound = float((found - wanted).abs().max()), FP32
    else:
        own = torch.load(references / "models" / f"{model}-bf16.pt")
        error, bound = (float((given - wanted).norm() / wanted.norm()) for given in (found, own))
        bound *= 1.5
    record_property("error", error)
    assert error < bound


def far(log: list[dict[str, float]], wanted: list[dict[str, float]]) -> dict[str, float]:
    """Of each number of two logs the largest relative difference; one below 0.1 is compared as if it were that."""
    assert [sorted(row) for row in log] == [sorted(row) for row in wanted]
    found: dict[str, float] = {}
    for row, other in zip(log, wanted, strict=True):
        for key, value in other.items():
            found[key] = largest([found.get(key, 0.0), abs(row[key] - value) / max(0.1, abs(value))])
    return found


def largest(errors: Iterable[float]) -> float:
    """The largest of them; infinite where one is no number, which ``max`` may overlook."""
    return max(math.inf if math.isnan(error) else error for error in errors)


def test_a_methods_steps_are_those_of_the_cpu(
    method: str,
    precision: str,
    ranks: Any,
    half: Any,
    references: Path,
    expected: dict[str, Any],
    tmp_path: Path,
    record_property: Record,
) -> None:
    """Every number of the log: in bf16 as near to the CPU's fp32 as the CPU's own bf16."""
    spec = cases.method_spec(references, method, tmp_path, device=DEVICE, precision=precision)
    logs = {kind: of_runs.get(method) for kind, of_runs in expected["logs"].items()}
    errors = far(cases.unlearn(spec, ranks if precision == "fp32" else half), logs["fp32"])
    if precision == "bf16":
        bounds = {key: BF16 + 2 * own for key, own in far(logs["bf16"], logs["fp32"]).items()}
    else:  # ofmu's second derivatives are differences
        bounds = dict.fromkeys(errors, 20 * FP32 if spec.rule.name == "ofmu" else FP32)
    worst = max(errors, key=lambda key: errors[key] / bounds[key])
    record_property("worst", {"number": worst, "error": errors[worst], "bound": bounds[worst]})
    assert errors[worst] < bounds[worst]


def test_inner_products_are_exact(ranks: Any, references: Path, tmp_path: Path, record_property: Record) -> None:
    """Of fp32 gradients in fp64, against numpy's."""
    import torch

    from megatron_ext.checkpoint import reading
    from megatron_ext.config import Optimizer, Runtime
    from megatron_ext.training.trainer import Trainer

    model = reading.load(references / "world" / "untied", ranks, training=Runtime())
    space = Trainer(model, ranks, Optimizer(learning_rate=1e-3), 1).accumulator.space
    generator = torch.Generator().manual_seed(0)
    for piece in space.held:
        piece.copy_(torch.randn(piece.numel(), generator=generator))
    a = space.copy()
    for piece in space.held:
        piece.copy_(1e-12 * torch.randn(piece.numel(), generator=generator))  # whose squares vanish in fp32
    vectors = [torch.cat([piece.cpu().double() for piece in vector]) for vector in (a, space.held)]
    gram = space.products([a, space.held]).cpu()
    error = largest(
        abs(float(gram[i, j] - vectors[i] @ vectors[j]) / float(vectors[i].norm() * vectors[j].norm()))
        for i in range(2)
        for j in range(2)
    )
    record_property("error", error)
    assert error < 1e-12
    space.combine(0.5, a, 0.25)
    torch.testing.assert_close(torch.cat(space.held).cpu().double(), 0.5 * vectors[1] + 0.25 * vectors[0])


@pytest.mark.parametrize("token_budget", [1, 100_000], ids=["unpadded", "padded"])
def test_answers_and_scores_are_those_of_transformers(
    answering: str, token_budget: int, ranks: Any, references: Path, expected: dict[str, Any], record_property: Record
) -> None:
    """Greedy tokens of prompts alone and padded on the left; no choice among them is a near tie."""
    from megatron_ext.checkpoint import reading
    from megatron_ext.inference.generation import GenerateRequest, generate
    from megatron_ext.inference.scoring import ScoreRequest, score

    wanted, model = expected["inference"][answering], reading.load(references / "inference" / answering, ranks)
    requests = [GenerateRequest(prompt, inference_cases.NEW_TOKENS) for prompt in inference_cases.prompts()]
    assert generate(model, ranks, requests, wanted["end_ids"], token_budget, progress=False) == wanted["new"]
    pairs = [ScoreRequest(*pair) for pair in inference_cases.requests()]
    scores = [each.log_prob for each in score(model, ranks, pairs, token_budget, progress=False)]
    error = largest(abs(a - b) for a, b in zip(scores, wanted["log_probs"], strict=True))
    record_property("error", error)
    assert error < 1e-3  # of sums over up to 63 tokens


@pytest.mark.usefixtures("deterministic")
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_run_that_was_stopped_ends_with_the_same_bits(
    precision: str, ranks: Any, half: Any, references: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from megatron_ext.training.trainer import Trainer

    here = ranks if precision == "fp32" else half
    whole, parts = (
        cases.method_spec(references, "blur-npo", tmp_path / kind, device=DEVICE, precision=precision)
        for kind in ("whole", "parts")
    )
    log, step, taken = cases.unlearn(whole, here), Trainer.step, []

    def stopping(*args: Any, **more: Any) -> Any:
        taken.append(None)
        if len(taken) == 3:
            os.kill(os.getpid(), signal.SIGURG)
        return step(*args, **more)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "step", stopping)
        with pytest.raises(SystemExit) as stopped:
            cases.unlearn(parts, here)
    assert stopped.value.code == 143 and len(taken) == 3
    assert cases.unlearn(parts, here) == log
    name = Path("checkpoint") / "model.safetensors"
    assert (parts.output / name).read_bytes() == (whole.output / name).read_bytes()


def test_a_reference_model_in_host_memory_is_one_on_the_gpu(ranks: Any, references: Path) -> None:
    import numpy as np
    import torch

    from megatron_ext.checkpoint import reading
    from megatron_ext.data.collate import SequenceDataset
    from megatron_ext.data.sequences import Sequences
    from megatron_ext.training.reference_model import ReferenceCopy

    dataset = SequenceDataset([Sequences.load(references / "world" / "forget" / "forget_data.npz")])
    batches = [dataset.collate(list(rows), ranks.device) for rows in np.split(np.arange(6), 2)]
    found = []
    for offload in (False, True):
        model = reading.load(references / "world" / "tied", ranks)
        reference = ReferenceCopy(model, ranks, offload=offload)
        with torch.no_grad():
            found.append([reference.logits(hidden) for hidden in reference.hidden(batches) if hidden is not None])
    assert len(found[0]) == 2
    for resident, offloaded in zip(*found, strict=True):
        assert resident.equal(offloaded)


def test_recomputed_activations_change_nothing(ranks: Any, references: Path, tmp_path: Path) -> None:
    plain, again = (
        cases.unlearn(
            cases.method_spec(references, "blur-npo", tmp_path / str(on), device=DEVICE, recompute_activations=on),
            ranks,
        )
        for on in (False, True)
    )
    assert max(far(again, plain).values()) < 1e-5


@pytest.mark.parametrize(
    ("memory", "bound"),
    [
        ({"optimizer": "offload"}, BF16 / 10),
        ({"gradients": "bf16", "optimizer": "offload"}, 5 * BF16),
    ],
    ids=["offload", "bf16-gradients"],
)
def test_what_saves_memory_takes_nearly_the_same_steps(
    memory: dict[str, Any], bound: float, half: Any, references: Path, tmp_path: Path, record_property: Record
) -> None:
    """An offloaded optimizer rounds as the CPU's AdamW does, not as the GPU's."""
    layout = {"distributed_optimizer": True}
    here = dataclasses.replace(half, layout=Layout.model_validate(layout))
    more: dict[str, Any] = {"device": DEVICE, "precision": "bf16", "layout": layout}
    plain, lean = (
        cases.unlearn(cases.method_spec(references, "blur-npo", tmp_path / kind, memory=settings, **more), here)
        for kind, settings in (("plain", {}), ("lean", memory))
    )
    error = max(far(lean, plain).values())
    record_property("error", error)
    assert error < bound


@pytest.mark.usefixtures("ranks")
def test_no_attention_is_cudnns() -> None:
    import torch

    assert DEVICE == "cpu" or not torch.backends.cuda.cudnn_sdp_enabled()


def test_transformer_engine_computes_the_same(model: str, half: Any, references: Path, record_property: Record) -> None:
    from megatron_ext.distributed import kernels

    problem = kernels._transformer_engine_problem()
    if problem or DEVICE == "cpu":
        pytest.skip(f"Transformer Engine: {problem or 'needs a GPU'}")
    folder = references / "models" / "bf16" / model
    plain, engine = (logits(folder, dataclasses.replace(half, kernels=kind)) for kind in ("torch", "te"))
    error = float((engine - plain).norm() / plain.norm())
    record_property("error", error)
    assert error < BF16


def at_two(references: str, out: str, layouts: list[dict[str, Any]]) -> list[Any]:
    """A rank of each layout."""
    from megatron_ext.distributed import process_groups

    found = []
    for number, layout in enumerate(layouts):
        spec = cases.method_spec(Path(references), "blur-npo", Path(out) / str(number), device="cuda", layout=layout)
        with process_groups.start(spec.runtime) as ranks:
            found.append(cases.unlearn(spec, ranks))
    return found


def test_two_gpus_are_one(references: Path, expected: dict[str, Any], tmp_path: Path, record_property: Record) -> None:
    """NCCL at the layouts of two ranks; the same layouts over gloo are in tests/integration."""
    import torch

    if DEVICE == "cpu" or torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    layouts = [
        {"tensor": 2, "sequence_parallel": True},
        {"pipeline": 2},
        {"data": 2, "distributed_optimizer": True},
    ]
    for log in run_ranks(at_two, 2, str(references), str(tmp_path), layouts, timeout=240.0)[0]:
        error = max(far(log, expected["logs"]["fp32"]["blur-npo"]).values())
        record_property("error", error)
        assert error < FP32
