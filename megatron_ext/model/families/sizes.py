"""The numbers of a Hugging Face config, checked before anything is computed with them or memory is taken for them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

# Far above every known model, and low enough for products of three of them to stay exact and for lists by layer to stay
# small.
MOST = {
    "hidden_size": 2**20,
    "intermediate_size": 2**24,
    "num_hidden_layers": 2**12,
    "num_attention_heads": 2**14,
    "num_key_value_heads": 2**14,
    "head_dim": 2**16,
    "vocab_size": 2**24,
    "max_position_embeddings": 2**28,
    "sliding_window": 2**28,
}
FLAGS = ("tie_word_embeddings", "attention_bias", "mlp_bias", "use_sliding_window")
OPTIONAL = ("num_key_value_heads", "head_dim", "sliding_window")  # null where the family's default is meant
SCALING = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")


def check_sizes(config: Mapping[str, Any], rope: Mapping[str, Any]) -> None:
    """Check every number that a model is built from.

    Args:
        config: A Hugging Face config that has all required keys.
        rope: Its rotary embedding's parameters.

    Raises:
        ValueError: The first number that is wrong, with its key and what is allowed.
    """
    for key, most in MOST.items():
        value = config.get(key)
        if value is None and key in OPTIONAL:
            continue
        # A truth value is an int in Python, and a float like 2048.0 would become one in shapes.
        whole(key, value, 1, most)
    for key in FLAGS:
        if not isinstance(config.get(key), bool | None):
            raise ValueError(f"{key}: {_short(config[key])}; allowed: true, false")
    _check_heads(config)
    positive("rms_norm_eps", config["rms_norm_eps"])
    positive("rope_theta", rope["rope_theta"])
    for key in SCALING:
        if rope["rope_type"] != "default" and key in rope:
            positive(key, rope[key])
    deviation = config.get("initializer_range", 0.02)
    if not _is_number(deviation) or deviation < 0:
        raise ValueError(f"initializer_range: {_short(deviation)}; allowed: a finite number from 0")


def check_experts(config: Mapping[str, Any], count: tuple[str, ...], chosen: str, width: str) -> None:
    """Check the numbers of a mixture of experts.

    Args:
        config: A Hugging Face config.
        count: Keys of the number of experts, of which the config has one.
        chosen: Key of how many of them a position goes to.
        width: Key of an expert's width.

    Raises:
        ValueError: One is missing or wrong, with its key and what is allowed.
    """
    key = next((key for key in count if config.get(key) is not None), count[0])
    for name in (key, width, chosen):
        bounds = {key: MOST["num_attention_heads"], width: MOST["intermediate_size"]}
        value, most = config.get(name), bounds.get(name) or config[key]
        whole(name, value, 1, most)


def check_layer_types(config: Mapping[str, Any]) -> None:
    """Raise ``ValueError`` where ``layer_types`` does not say of each layer whether its attention has a window."""
    layers, kinds = config["num_hidden_layers"], config.get("layer_types")
    names = ("sliding_attention", "full_attention")
    if kinds is not None and not (
        isinstance(kinds, list) and len(kinds) == layers and all(kind in names for kind in kinds)
    ):
        raise ValueError(f"layer_types: {kinds!r:.60}; allowed: {' or '.join(names)} for each of {layers}")


def check_theta(config: Mapping[str, Any]) -> None:
    """Raise ``ValueError`` where ``rope_theta`` is missing, in families whose own default is not Llama's 10000."""
    if "rope_theta" not in config and "rope_theta" not in (config.get("rope_parameters") or {}):
        raise ValueError("the model's config lacks ['rope_theta']")


def check_heads_are_given(config: Mapping[str, Any], defaults: Mapping[str, int]) -> None:
    """Check that a model has the same shapes in transformers.

    Args:
        config: A Hugging Face config with right sizes.
        defaults: What transformers takes for a key that is not there, where that is a number of the family's own.

    Raises:
        ValueError: ``num_key_value_heads`` or ``head_dim`` is missing, and here another number would be taken for it.
    """
    heads = config["num_attention_heads"]
    ours = {"num_key_value_heads": heads, "head_dim": config["hidden_size"] // heads}
    # A null means what it means here for key-value heads; transformers has no meaning for that of a head's size.
    given = {key for key in config if key != "head_dim" or config[key] is not None}
    lacking = [key for key, number in defaults.items() if key not in given and number != ours[key]]
    if lacking:
        taken = ", ".join(f"{defaults[key]} for {key}" for key in lacking)
        raise ValueError(f"the model's config lacks {lacking}: transformers would take {taken}")


def _check_heads(config: Mapping[str, Any]) -> None:
    hidden, heads = config["hidden_size"], config["num_attention_heads"]
    groups, size = config.get("num_key_value_heads"), config.get("head_dim")
    if groups is not None and heads % groups:
        raise ValueError(f"num_key_value_heads: {groups} does not divide num_attention_heads, {heads}")
    if size is None and hidden % heads:
        raise ValueError(f"num_attention_heads: {heads} does not divide hidden_size, {hidden}")
    size = size or hidden // heads
    if size % 2:  # rotary embeddings turn pairs
        raise ValueError(f"head_dim: {size}; allowed: an even number")


def positive(key: str, value: Any) -> None:
    """Raise ``ValueError`` with the key for what is no finite number above 0."""
    if not _is_number(value) or value <= 0:
        raise ValueError(f"{key}: {_short(value)}; allowed: a finite number above 0")


def whole(key: str, value: Any, least: int, most: int) -> None:
    """Raise ``ValueError`` with the key for what is no whole number from ``least`` to ``most``."""
    if type(value) is not int or not least <= value <= most:
        raise ValueError(f"{key}: {_short(value)}; allowed: a whole number from {least} to {most}")


def _is_number(value: Any) -> bool:
    """Whether a value is a finite number, and small enough for a float."""
    if type(value) not in (int, float):
        return False
    try:
        return math.isfinite(float(value))
    except OverflowError:
        return False


def _short(value: Any) -> str:
    if type(value) is int and value.bit_length() > 128:
        return f"a number of {value.bit_length()} bits"  # it has no text where it has more than 4300 digits
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
