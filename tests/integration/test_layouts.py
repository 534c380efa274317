"""The same unlearning run at every layout: the same step log, and the same metrics of what comes out.

That evaluations do not depend on the layout is ``test_evaluation_equality``'s: here all run on one rank.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import yaml

from megatron_ext.config import Layout
from tests.support.distributed import run_ranks

LAYOUTS: dict[str, dict[str, Any]] = {
    "tp1": {},
    "tp2-pp2": {"tensor": 2, "pipeline": 2},
    "pp2-dp2": {"pipeline": 2, "data": 2},  # tied embeddings, in a bucket of their own, over sharded gradients
}
STEPS = 8
ADAPTED = ("tp1", "tp2-pp2")
COMPARED = ("forget_loss", "retain_loss", "forget_grad_norm", "retain_grad_norm", "update_norm")
SIGNED = ("grad_cosine", "retain_alignment")  # differences of terms of size one, which may cross zero
MODEL = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 3,  # splits unevenly over two stages
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 701,  # needs padding over two ranks
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "tie_word_embeddings": True,
    "initializer_range": 0.02,
    "bos_token_id": 0,
    "eos_token_id": 1,
}


def runtime(layout: dict[str, Any]) -> dict[str, Any]:
    return {"device": "cpu", "timeout_seconds": 60.0, "layout": layout}


def run(program: str, folder: Path, name: str, spec: dict[str, Any]) -> None:
    """Run one step's program in this process, as one of the ranks that the environment names."""
    import importlib

    path = folder / f"{name}-{os.environ.get('RANK', 0)}.yaml"
    path.write_text(yaml.safe_dump({**spec, "output": str(folder / name)}))
    importlib.import_module(program).main([str(path)])


def make_world(folder: Path) -> None:
    """Data, a trained target, its reference log-probabilities, and the evaluation of a stand-in for retrain."""
    source = {"kind": "synthetic", "authors": 10, "questions_per_author": 6, "background_authors": 0, "seed": 0}
    tokenizer = {"kind": "bpe", "vocab_size": MODEL["vocab_size"]}
    run(
        "pipeline.steps.prepare",
        folder,
        "data",
        {
            "program": "prepare",
            "family": "tofu",
            "source": source,
            "forget_split": "forget10",
            "sets": ["forget", "retain", "real_authors", "world_facts"],
            "tokenizer": tokenizer,
            "max_length": 128,
        },
    )
    for name, data in {"target": "full", "retrain": "retain"}.items():
        spec = {
            "program": "train",
            "model": {"config": MODEL, "tokenizer": str(folder / "data" / "tokenizer")},
            "data": {str(folder / "data" / "train" / f"{data}.npz"): 1.0},
            "steps": 60,
            "batching": {"global_batch": 16, "micro_batch": 16},
            "optimizer": {"learning_rate": 0.003, "betas": [0.9, 0.98], "clip_norm": 1.0},
            "runtime": runtime({}),
        }
        run("megatron_ext.steps.train", folder, name, spec)
    forget = str(folder / "data" / "train" / "forget.npz")
    checkpoint = str(folder / "target" / "checkpoint")
    run(
        "megatron_ext.steps.reference",
        folder,
        "reference",
        {"program": "reference", "checkpoint": checkpoint, "data": forget},
    )
    evaluate(folder, "retrain", "retrain-evaluation", "retrain")


def evaluate(folder: Path, model: str, name: str, model_id: str) -> None:
    spec = {
        "program": "evaluate",
        "benchmark": "tiny",
        "split": "forget10",
        "model_id": model_id,
        "checkpoint": str(folder / model / "checkpoint"),
        "data": str(folder / "data"),
        "retain_evaluation": None if model_id == "retrain" else str(folder / "retrain-evaluation"),
        "options": {"family": "tofu", "max_new_tokens": 6},
        "runtime": runtime({}),
    }
    run("pipeline.steps.evaluate", folder, name, spec)


def unlearn(folder: Path, name: str, layout: dict[str, Any]) -> None:
    """BLUR-NPO; over data-parallel ranks, with the distributed optimizer too; at some layouts, also on adapters."""
    data = folder / "data" / "train"

    def run_of(run_name: str, sharded: bool = False, **changes: Any) -> None:
        spec = {
            "program": "unlearn",
            "checkpoint": str(folder / "target" / "checkpoint"),
            "topics": [
                {
                    "forget_data": str(data / "forget.npz"),
                    "retain_data": str(data / "retain.npz"),
                    "reference_logps": str(folder / "reference" / "reference.npz"),
                }
            ],
            "forget_loss": {"name": "npo", "beta": 0.1},
            "retain_loss": {"name": "nll"},
            "rule": {"name": "blur", "gamma": 0.5},
            "epochs": float(STEPS),
            "warmup_epochs": 2.0,
            "batching": {"global_batch": 6, "micro_batch": 2},
            "optimizer": {"learning_rate": 0.0001, "weight_decay": 0.01},
            "runtime": runtime({**layout, "distributed_optimizer": sharded}),
        }
        run("megatron_ext.steps.unlearn", folder, run_name, {**spec, **changes})

    for sharded in (False, True)[: layout.get("data", 1)]:
        run_of(f"{name}-sharded" if sharded else name, sharded)
    if name in ADAPTED:
        run_of(f"{name}-lora", lora={"rank": 4, "alpha": 8.0}, epochs=4.0, optimizer={"learning_rate": 0.001})


def evaluate_all(folder: Path) -> None:
    for name in LAYOUTS:
        evaluate(folder, name, f"{name}-evaluation", "blur-npo")


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("layouts")
    run_ranks(make_world, 1, folder)
    for name, layout in LAYOUTS.items():
        run_ranks(unlearn, Layout(**layout).ranks, folder, name, layout, timeout=240)
    run_ranks(evaluate_all, 1, folder)
    return folder


def steps(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "steps.jsonl").read_text().splitlines()]


OTHERS = [name for name in LAYOUTS if name != "tp1"]
OTHERS += [f"{name}-sharded" for name, layout in LAYOUTS.items() if layout.get("data", 1) > 1]


@pytest.mark.slow
@pytest.mark.parametrize("name", OTHERS)
def test_steps_do_not_depend_on_the_layout(results: Path, name: str) -> None:
    expected, got = steps(results / "tp1"), steps(results / name)
    assert len(expected) == len(got) == STEPS
    assert expected[-1]["forget_loss"] < 0.95 * expected[0]["forget_loss"], "the run does something"
    for a, b in zip(expected, got, strict=True):
        for key in COMPARED:
            assert b[key] == pytest.approx(a[key], rel=1e-4), (name, a["step"], key)
        for key in SIGNED:
            assert b[key] == pytest.approx(a[key], rel=1e-4, abs=1e-5), (name, a["step"], key)
        assert (b["learning_rate"], b["tokens"], b["epoch"]) == (a["learning_rate"], a["tokens"], a["epoch"])


@pytest.mark.slow
def test_adapters_and_merged_weights_do_not_depend_on_the_layout(results: Path) -> None:
    """Where layers are split over ranks and over stages at once; other layouts are compared with the formulas."""
    from safetensors.torch import load_file

    expected, got = (steps(results / f"{name}-lora") for name in ADAPTED)
    for a, b in zip(expected, got, strict=True):
        for key in COMPARED:
            assert b[key] == pytest.approx(a[key], rel=1e-5), (a["step"], key)
    before, one, several = (
        load_file(results / name / "checkpoint" / "model.safetensors")
        for name in ("target", *(f"{name}-lora" for name in ADAPTED))
    )
    assert max(float((several[key] - value).abs().max()) for key, value in one.items()) < 2e-6
    assert max(float((before[key] - value).abs().max()) for key, value in one.items()) > 1e-4, "the run does something"


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in LAYOUTS if name != "tp1"])
def test_metrics_do_not_depend_on_the_layout(results: Path, name: str) -> None:
    expected, got = (
        json.loads((results / f"{n}-evaluation" / "evaluation.json").read_text())["metrics"] for n in ("tp1", name)
    )
    assert set(got) == set(expected)
    assert "forget_quality" in got and "model_utility" in got
    for key, value in expected.items():
        assert got[key] == pytest.approx(value, abs=1e-3, rel=1e-3), (name, key)
