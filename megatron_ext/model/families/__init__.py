"""Model families, one a file, found by the ``architectures`` entry of a Hugging Face config."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping
from typing import Any

from megatron_ext.model.families.base import REQUIRED, Family, rope_parameters

SCALINGS = ("default", "linear", "llama3")


def known() -> dict[str, type[Family]]:
    """Architecture name -> family, of every file in this package."""
    found: dict[str, type[Family]] = {}
    for module in pkgutil.iter_modules(__path__):
        for value in vars(importlib.import_module(f"{__name__}.{module.name}")).values():
            if isinstance(value, type) and issubclass(value, Family):
                found.update(dict.fromkeys(value.architectures, value))
    return found


def family_of(config: Mapping[str, Any]) -> type[Family]:
    """The family of a Hugging Face config; raises ``ValueError`` that names what is missing or not supported."""
    names = config.get("architectures") or []
    families = known()
    for name in names:
        if name in families:
            break
    else:
        raise ValueError(f"architectures: {names} is not supported; known: {sorted(families)}")
    missing = [key for key in REQUIRED if key not in config]
    if missing:
        raise ValueError(f"the model's config lacks {missing}")
    kind = rope_parameters(config)["rope_type"]
    if kind not in SCALINGS:
        raise ValueError(f"rope scaling {kind!r} is not supported; known: {list(SCALINGS)}")
    if config.get("hidden_act", "silu") != "silu":
        raise ValueError(f"hidden_act: {config['hidden_act']!r} is not supported; known: ['silu']")
    if config.get("mlp_bias"):
        raise ValueError("mlp_bias: true is not supported")
    return families[name]


__all__ = ["Family", "family_of", "known", "rope_parameters"]
