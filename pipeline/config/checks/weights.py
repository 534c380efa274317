"""Checks of checkpoint folders and repositories, whole, before anything is prepared."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from megatron_ext.model.families import Experts
from pipeline.config.checks.checker import Checker
from pipeline.config.located_yaml import Document, Key
from pipeline.config.model_schema import Checkpoint, GivenModel, Model
from pipeline.config.schema import checkpoints
from pipeline.config.sizing import Shape
from pipeline.hub import adapter, local_files, model_folder
from pipeline.hub.description import HubError, describe

# What a plan is checked against: the config.json that is fetched later must have the same.
DECIDING = (
    *("architectures", "model_type", "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers"),
    *("num_attention_heads", "num_key_value_heads", "head_dim", "max_position_embeddings", "sliding_window"),
    *("tie_word_embeddings", "original_max_position_embeddings", "num_local_experts", "num_experts"),
    *("n_routed_experts", "n_shared_experts", "moe_intermediate_size", "first_k_dense_replace"),
    *("kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim"),
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
    for which, checkpoint in _adapted(checker, model):
        key = (*key_of(checker, which, checkpoint)[:-1], "adapter")
        assert checkpoint.adapter is not None
        fault = adapter.fault(checkpoint.adapter, checkpoint.folder)
        if fault:
            checker.problems.append(model_file.problem(key, f"{str(checkpoint.adapter)!r}: {fault}"))
    for which, checkpoint in checkpoints(model, checker.experiment.training, checker.retrain_split).items():
        if checkpoint.folder is None:
            continue
        key = key_of(checker, which, checkpoint)
        folder = described(checker, checkpoint, model_file, key)
        fault = misfit(folder, shape) if folder else None
        if fault:
            checker.problems.append(model_file.problem(key, f"{str(checkpoint.folder)!r}: {fault}"))


def _adapted(checker: Checker, model: Model) -> list[tuple[str, Checkpoint]]:
    """The checkpoints that adapters are merged into."""
    used = checkpoints(model, checker.experiment.training, checker.retrain_split)
    return [(which, checkpoint) for which, checkpoint in used.items() if checkpoint.adapter]


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
    asked = tensors(shape)
    layers, biases = f"model.layers.{shape.layers}.", [f"model.layers.0.self_attn.{name}_proj.bias" for name in "qkvo"]
    for name in found:
        if name.startswith(layers) or (name in biases and name not in asked):
            return f"its weights hold {name!r}, which its config.json does not ask for"
    return None


def tensors(shape: Shape) -> dict[str, tuple[int, ...]]:
    """The matrices of a model of this shape, by their Hugging Face names; first and last layer stand for all."""
    found: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (shape.vocabulary, shape.hidden)}
    for i in sorted({0, shape.layers - 1}):
        experts = shape.experts_of(i)
        layer = _attention(shape) | (_experts(experts, shape.hidden) if experts else _mlp(shape))
        found |= {f"model.layers.{i}.{name}": size for name, size in layer.items()}
    head = {} if shape.tied else {"lm_head.weight": (shape.vocabulary, shape.hidden)}
    return {**found, "model.norm.weight": (shape.hidden,), **head}


def _attention(shape: Shape) -> dict[str, tuple[int, ...]]:
    queries, keys = shape.heads * shape.head_dim, shape.key_value_heads * shape.head_dim
    own, latent = {"q": (queries, shape.hidden), "k": (keys, shape.hidden), "v": (keys, shape.hidden)}, shape.latent
    if shape.fused:
        own = {"qkv": (queries + 2 * keys, shape.hidden)}
    found: dict[str, tuple[int, ...]] = {f"self_attn.{name}_proj.weight": size for name, size in own.items()}
    if shape.qkv_bias:
        found |= {f"self_attn.{name}_proj.bias": size[:1] for name, size in own.items()}
    if shape.output_bias:
        found["self_attn.o_proj.bias"] = (shape.hidden,)
    if latent:
        found = {
            "self_attn.q_proj.weight": (queries, shape.hidden),
            "self_attn.kv_a_proj_with_mqa.weight": (latent.rank + latent.rotary, shape.hidden),
            "self_attn.kv_b_proj.weight": (shape.heads * (latent.plain + latent.value), latent.rank),
        }
    if shape.sinks:
        found["self_attn.sinks"] = (shape.heads,)
    return {**found, "self_attn.o_proj.weight": (shape.hidden, shape.attended)}


def _mlp(shape: Shape) -> dict[str, tuple[int, ...]]:
    wide = (shape.dense_ffn, shape.hidden)
    first: dict[str, tuple[int, ...]] = {"mlp.gate_proj.weight": wide, "mlp.up_proj.weight": wide}
    if shape.fused:
        first = {"mlp.gate_up_proj.weight": (2 * shape.dense_ffn, shape.hidden)}
    return {**first, "mlp.down_proj.weight": (shape.hidden, shape.dense_ffn)}


def _experts(kind: Experts, hidden: int) -> dict[str, tuple[int, ...]]:
    found: dict[str, tuple[int, ...]] = {kind.router: (kind.count, hidden)}
    if kind.stacked:
        sizes = {kind.gate: (hidden, 2 * kind.width), kind.down: (kind.width, hidden)}
        return found | {name: (kind.count, *size) for name, size in sizes.items()}
    for i in sorted({0, kind.count - 1}):
        found |= {name.format(i): (kind.width, hidden) for name in (kind.gate, kind.up)}
        found[kind.down.format(i)] = (hidden, kind.width)
    if kind.shared:
        found["mlp.shared_experts.down_proj.weight"] = (hidden, kind.shared)
    return found


def deciding(config: dict[str, Any]) -> dict[str, Any]:
    """The entries of a ``config.json`` that a plan depends on."""
    return {key: config[key] for key in DECIDING if key in config}
