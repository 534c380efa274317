"""What a folder of adapters, as ``peft`` writes it, says of itself, and whether that can be merged.

Imports no torch: planning uses it too.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from megatron_ext.checkpoint.model_files import read_object

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."

# What makes of adapters more than a sum of two matrices' products and a weight, or of one rank several.
REFUSED = (
    *("fan_in_fan_out", "modules_to_save", "rank_pattern", "alpha_pattern", "layer_replication", "lora_bias"),
    *("alora_invocation_tokens", "target_parameters", "trainable_token_indices", "arrow_config", "kasa_config"),
    "monteclora_config",
)
INITIAL = (None, True, False, "gaussian", "orthogonal", "eva")  # others change the base model's weights


def scale(path: Path) -> float:
    """What the product of a matrix's two tensors is multiplied by.

    Args:
        path: The folder's ``adapter_config.json``.

    Raises:
        ValueError: The adapters are no sum of matrices, with the key.
    """
    config = read_object(path)
    kinds = [key for key in config if key.startswith("use_") and key != "use_rslora"]
    allowed: dict[str, tuple[Any, ...]] = {"peft_type": ("LORA",), "bias": ("none", None), "init_lora_weights": INITIAL}
    allowed |= {key: (None, False, [], {}) for key in (*REFUSED, *kinds)}
    for key, values in allowed.items():
        if config.get(key) not in values:
            shown = ", ".join(map(repr, values))
            raise ValueError(f"{path}: {key}: {config.get(key)!r:.100}; allowed: {shown}")
    rank, alpha = config.get("r"), config.get("lora_alpha")
    if not isinstance(rank, int) or rank < 1 or not isinstance(alpha, int | float):
        raise ValueError(f"{path}: r: {rank!r:.50}, lora_alpha: {alpha!r:.50}; allowed: a rank and a number")
    return float(alpha / (rank**0.5 if config.get("use_rslora") else rank))


def misnamed(tensors: Iterable[str]) -> str | None:
    """The first tensor's name that is not one of an adapter's two matrices, as a message; None where there is none."""
    for name in tensors:
        if not name.startswith(PREFIX) or not name.endswith((".lora_A.weight", ".lora_B.weight")):
            return f"has the tensor {name!r:.100}; allowed: {PREFIX}<matrix>.lora_A.weight and lora_B.weight"
    return None


def mismatch(shapes: Mapping[str, tuple[int, ...]], known: Mapping[str, tuple[int, ...]]) -> str | None:
    """Where adapters are not those of a checkpoint's matrices.

    Args:
        shapes: Of the adapters' tensors, without ``PREFIX``.
        known: Of the checkpoint's tensors.

    Returns:
        A message, in which ``{base}`` is to become the checkpoint's folder; None where they fit.
    """
    for name, (rank, inputs) in shapes.items():
        if name.endswith("lora_B.weight"):
            continue
        matrix, other = name.removesuffix(".lora_A.weight"), name.replace(".lora_A.", ".lora_B.")
        needed = known.get(f"{matrix}.weight")
        given = shapes.get(other, ())
        if needed is None or needed != (*given[:1], inputs) or given[1:] != (rank,):
            shape = "no such tensor" if needed is None else list(needed)
            return f"{name} {[rank, inputs]}, lora_B {list(given)}: {{base}} has {matrix}.weight: {shape}"
    lonely = [n for n in shapes if n.replace(".lora_B.", ".lora_A.") not in shapes]
    return f"{lonely[0]} has no lora_A beside it" if lonely else None
