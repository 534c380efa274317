"""Model families, one a file, found by the ``architectures`` entry of a Hugging Face config."""

from __future__ import annotations

import pkgutil
from collections.abc import Mapping
from typing import Any

from megatron_ext.model.families.base import REQUIRED, AttentionKind, Experts, Family, Latent, lacking, rope_parameters
from megatron_ext.model.families.sizes import SCALING, check_heads_are_given, check_sizes
from megatron_ext.schema import BrokenFile, import_file

# Kinds of scaling, and what each needs.
SCALINGS: dict[str, tuple[str, ...]] = {
    "default": (),
    "linear": SCALING[:1],
    "llama3": SCALING,
    "longrope": ("short_factor", "long_factor"),
    "yarn": ("factor", "original_max_position_embeddings"),
}

# Architectures that are known and not built, and what of them is missing here.
MISSING = {
    "DeepseekV3ForCausalLM": "experts that are chosen in groups, by sigmoids and a bias",
    "Gemma3ForConditionalGeneration": "a tower for images (folders of Gemma3ForCausalLM, text alone, are read)",
}


def known() -> dict[str, type[Family]]:
    """Architecture name -> family, of every file in this package.

    Raises:
        BrokenFile: A file cannot be imported, or a class in it takes the architecture of another one.
    """
    found: dict[str, type[Family]] = {}
    for module in pkgutil.iter_modules(__path__):
        loaded = import_file(f"{__name__}.{module.name}")
        for value in vars(loaded).values():
            if not (isinstance(value, type) and issubclass(value, Family) and value.__module__ == loaded.__name__):
                continue
            where = f"{loaded.__name__.replace('.', '/')}.py: class {value.__name__}: architectures"
            if not isinstance(value.architectures, tuple):
                raise BrokenFile(f"{where}: {value.architectures!r:.60} is not allowed; must be a tuple of names")
            for name in value.architectures:
                other = found.setdefault(name, value)
                if other is not value:
                    raise BrokenFile(f"{where}: {name!r} is that of {other.__name__} too, in {other.__module__}")
    return found


def family_of(config: Mapping[str, Any]) -> type[Family]:
    """The family of a Hugging Face config; raises ``ValueError`` that names what is missing or not supported."""
    names = config.get("architectures") or []
    if not (isinstance(names, list) and all(isinstance(name, str) for name in names)):
        raise ValueError(f"architectures: {names!r:.60}; allowed: a list of names")
    families = known()
    for name in names:
        if name in families:
            break
    else:
        lacking = [f": {MISSING[name]} are not built here" for name in names if name in MISSING][:1]
        raise ValueError(f"architectures: {names} is not supported{''.join(lacking)}; known: {sorted(families)}")
    family = families[name]
    missing = [key for key in REQUIRED if key not in config]
    if missing:
        raise ValueError(f"the model's config lacks {missing}")
    rope = _rope(config, family)
    check_sizes(config, rope)
    check_heads_are_given(config, family.defaults)
    key, activation = family.activation
    if config.get(key, activation) != activation:
        raise ValueError(f"{key}: {config[key]!r:.60} is not supported; known: {[activation]}")
    if config.get("mlp_bias"):
        raise ValueError("mlp_bias: true is not supported")
    family.check(config)
    return family


def _rope(config: Mapping[str, Any], family: type[Family]) -> dict[str, Any]:
    for key in ("rope_parameters", "rope_scaling"):
        if not isinstance(config.get(key) or {}, Mapping):
            raise ValueError(f"{key}: {config[key]!r:.60}; allowed: an object")
    whole = (config.get("rope_parameters") or {}).get("full_attention")
    if not isinstance(whole or {}, Mapping):
        raise ValueError(f"rope_parameters.full_attention: {whole!r:.60}; allowed: an object")
    _one_rope(config)
    rope = rope_parameters(config)
    kind = rope["rope_type"]
    if kind not in family.scalings:  # it need not be a text
        raise ValueError(f"rope scaling {kind!r:.60} is not supported; known: {list(family.scalings)}")
    lacking = [key for key in SCALINGS[kind] if key not in rope]
    if lacking:
        raise ValueError(f"rope scaling {kind!r} lacks {lacking}")
    return rope


def _one_rope(config: Mapping[str, Any]) -> None:
    """Refuse two spellings of the rotary embedding that differ: transformers goes by the older one, if it is there."""
    new, old = (dict(config.get(key) or {}) for key in ("rope_parameters", "rope_scaling"))
    new = dict(new["full_attention"] or {}) if "full_attention" in new else new
    if not (new and old):
        return
    for part in (new, old):
        part["rope_type"] = part.get("rope_type") or part.pop("type", None) or "default"
    for key in sorted(new.keys() & old.keys()):
        if new[key] != old[key]:
            raise ValueError(
                f"rope_scaling says {key} {old[key]!r:.60}, rope_parameters {new[key]!r:.60}: remove the wrong one"
            )


__all__ = ["AttentionKind", "Experts", "Family", "Latent", "family_of", "known", "lacking", "rope_parameters"]
