"""Checks of checkpoint folders and repositories, whole, before anything is prepared."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pipeline.config.checks.checker import Checker
from pipeline.config.located_yaml import Document, Key
from pipeline.config.model_schema import Checkpoint, GivenModel, Model
from pipeline.config.schema import checkpoints
from pipeline.config.sizing import Shape
from pipeline.hub import local_files, model_folder
from pipeline.hub.description import HubError, describe

# What a plan is checked against: the config.json that is fetched later must have the same.
DECIDING = (
    *("architectures", "model_type", "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers"),
    *("num_attention_heads", "num_key_value_heads", "head_dim", "max_position_embeddings", "sliding_window"),
    *("tie_word_embeddings", "original_max_position_embeddings"),
)


def key_of(checker: Checker, which: str, checkpoint: Checkpoint) -> Key:
    """Where a checkpoint stands in the model's file, or in the experiment's, where that is the whole entry."""
    place = "folder" if checkpoint.folder else "hub"
    if isinstance(checker.experiment.model, GivenModel):
        return ("path" if checkpoint.folder else "hub",)
    return ("checkpoints", which, *((checker.experiment.split,) if which == "retrain" else ()), place)


def described(checker: Checker, checkpoint: Checkpoint, document: Document, key: Key) -> Path | None:
    """A folder with what is known of a checkpoint without its weights; ``None`` where there is none, after a problem.

    Args:
        checker: Gets the problems.
        checkpoint: A folder, or a repository of the hub, whose config and tokenizer are fetched.
        document: The file that names it.
        key: Where it does.
    """
    folder = checkpoint.folder
    if folder is None:
        assert checkpoint.hub is not None  # a checkpoint has exactly one of the two
        try:
            folder = describe(checkpoint.hub, checkpoint.revision)
        except HubError as error:
            checker.problems.append(document.problem(key, str(error)))
            return None
    fault = model_folder.fault(folder) if checkpoint.folder else model_folder.fault_of_description(folder)
    if fault:
        checker.problems.append(document.problem(key, f"{str(checkpoint.folder or checkpoint.hub)!r}: {fault}"))
        return None
    return folder


def folders(checker: Checker, model: Model, model_file: Document, shape: Shape) -> None:
    """Whether local checkpoints are all there, with weights as large as their config says."""
    for which, checkpoint in checkpoints(model, checker.experiment.training, checker.retrain_split).items():
        if checkpoint.folder is None:
            continue
        key = key_of(checker, which, checkpoint)
        folder = described(checker, checkpoint, model_file, key)
        fault = misfit(folder, shape) if folder else None
        if fault:
            checker.problems.append(model_file.problem(key, f"{str(checkpoint.folder)!r}: {fault}"))


def misfit(folder: Path, planned: Shape) -> str | None:
    """The first tensor of a whole checkpoint that its config or the plan does not speak of so, or ``None``."""
    config = local_files.architecture(folder) or {}
    try:
        shape = Shape.of(config)
    except (ValueError, TypeError, KeyError) as error:
        return f"config.json: {error}"
    if shape != planned:
        return "its config.json has other sizes than the planned architecture"
    found = model_folder.weights(folder)
    for name, size in tensors(shape).items():
        if name not in found:
            return f"its weights lack {name!r}, which its config.json asks for"
        if tuple(found[name]["shape"]) != size:
            return f"{name!r} has the shape {found[name]['shape']}; its config.json asks for {list(size)}"
    return None


def tensors(shape: Shape) -> dict[str, tuple[int, ...]]:
    """The matrices of a model of this shape, by their Hugging Face names; first and last layer stand for all."""
    queries, keys = shape.heads * shape.head_dim, shape.key_value_heads * shape.head_dim
    layer = {
        "self_attn.q_proj": (queries, shape.hidden),
        "self_attn.k_proj": (keys, shape.hidden),
        "self_attn.v_proj": (keys, shape.hidden),
        "self_attn.o_proj": (shape.hidden, queries),
        "mlp.gate_proj": (shape.ffn, shape.hidden),
        "mlp.up_proj": (shape.ffn, shape.hidden),
        "mlp.down_proj": (shape.hidden, shape.ffn),
    }
    if shape.fused:
        layer = {name: layer[name] for name in ("self_attn.o_proj", "mlp.down_proj")}
        layer["self_attn.qkv_proj"] = (queries + 2 * keys, shape.hidden)
        layer["mlp.gate_up_proj"] = (2 * shape.ffn, shape.hidden)
    if shape.experts is not None:
        layer = {name: size for name, size in layer.items() if name.startswith("self_attn")}
        layer[shape.experts.router.removesuffix(".weight")] = (shape.experts.count, shape.hidden)
        for i in sorted({0, shape.experts.count - 1}):
            for name in (shape.experts.gate, shape.experts.up):
                layer[name.format(i).removesuffix(".weight")] = (shape.ffn, shape.hidden)
            layer[shape.experts.down.format(i).removesuffix(".weight")] = (shape.hidden, shape.ffn)
    found: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (shape.vocabulary, shape.hidden)}
    for i in sorted({0, shape.layers - 1}):
        found |= {f"model.layers.{i}.{name}.weight": size for name, size in layer.items()}
    head = {} if shape.tied else {"lm_head.weight": (shape.vocabulary, shape.hidden)}
    return {**found, "model.norm.weight": (shape.hidden,), **head}


def deciding(config: dict[str, Any]) -> dict[str, Any]:
    """The entries of a ``config.json`` that a plan depends on."""
    return {key: config[key] for key in DECIDING if key in config}
