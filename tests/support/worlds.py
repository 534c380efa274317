"""A tiny world for training and unlearning tests: data, a target, and specifications, written to a folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import yaml

from megatron_ext.data.sequences import Sequences

VOCABULARY = 131  # odd, so that two tensor-parallel ranks need padding
CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "tie_word_embeddings": True,
    "initializer_range": 0.1,
    "bos_token_id": 0,
    "eos_token_id": 1,
}


def sequences(count: int, seed: int) -> Sequences:
    rng = np.random.default_rng(seed)
    return Sequences.pack(
        [
            (rng.integers(2, VOCABULARY, size=int(rng.integers(6, 20))).tolist(), int(rng.integers(1, 5)))
            for _ in range(count)
        ]
    )


def write_data(folder: Path) -> None:
    sequences(30, 1).save(folder / "forget.npz")
    sequences(90, 2).save(folder / "retain.npz")


def train_spec(folder: Path, name: str = "target", **changes: Any) -> Path:
    spec: dict[str, Any] = {
        "program": "train",
        "model": {"config": CONFIG},
        "data": {str(folder / "forget.npz"): 0.25, str(folder / "retain.npz"): 0.75},
        "steps": 12,
        "batching": {"global_batch": 8, "micro_batch": 4},
        "optimizer": {"learning_rate": 0.003, "betas": [0.9, 0.98], "clip_norm": 1.0, "weight_decay": 0.01},
        "runtime": {"device": "cpu", "timeout_seconds": 60.0},
        "output": str(folder / name),
    }
    return _write(folder / f"{name}.yaml", {**spec, **changes})


def unlearn_spec(folder: Path, name: str, layout: dict[str, Any] | None = None, **changes: Any) -> Path:
    spec: dict[str, Any] = {
        "program": "unlearn",
        "checkpoint": str(folder / "target" / "checkpoint"),
        "topics": [
            {
                "forget_data": str(folder / "forget.npz"),
                "retain_data": str(folder / "retain.npz"),
                "reference_logps": str(folder / "reference" / "reference.npz"),
            }
        ],
        "forget_loss": {"name": "npo", "beta": 0.1},
        "retain_loss": {"name": "nll"},
        "rule": {"name": "blur", "gamma": 0.5},
        "epochs": 5.0,
        "warmup_epochs": 1.0,
        "batching": {"global_batch": 8, "micro_batch": 2},
        "optimizer": {"learning_rate": 0.001},
        "runtime": {"device": "cpu", "timeout_seconds": 60.0, "layout": layout or {}},
        "output": str(folder / name),
    }
    return _write(folder / f"{name}.yaml", {**spec, **changes})


def reference_spec(folder: Path) -> Path:
    spec = {
        "program": "reference",
        "checkpoint": str(folder / "target" / "checkpoint"),
        "data": str(folder / "forget.npz"),
        "runtime": {"device": "cpu"},
        "output": str(folder / "reference"),
    }
    return _write(folder / "reference.yaml", spec)


def _write(path: Path, spec: dict[str, Any]) -> Path:
    path.write_text(yaml.safe_dump(spec))
    return path
