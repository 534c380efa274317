"""Checkpoint folders of zeros, with whole safetensors files, made without numerical libraries."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.config.checks.weights import tensors
from pipeline.config.sizing import Shape

CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-5,
    "vocab_size": 300,
    "tie_word_embeddings": True,
}


def write_safetensors(file: Path, shapes: Mapping[str, Sequence[int]], kind: str = "F32", width: int = 4) -> None:
    """A safetensors file of zeros."""
    header, end = dict[str, Any](), 0
    for name, shape in shapes.items():
        size = width
        for side in shape:
            size *= side
        header[name] = {"dtype": kind, "shape": list(shape), "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header).encode()
    file.write_bytes(len(text).to_bytes(8, "little") + text + bytes(end))


def write_checkpoint(folder: Path, config: Mapping[str, Any] = CONFIG, kind: str = "F32", width: int = 4) -> Path:
    """A folder with config, weights and the beginnings of a tokenizer."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    write_safetensors(folder / "model.safetensors", tensors(Shape.of(dict(config))), kind, width)
    (folder / "tokenizer.json").write_text("{}")
    return folder
