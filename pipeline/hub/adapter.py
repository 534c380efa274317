"""A folder of LoRA adapters beside the base model that it belongs to, before anything is merged."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from megatron_ext.checkpoint import adapter_settings
from megatron_ext.checkpoint.model_files import check_folder
from pipeline.hub import model_folder


def fault(folder: Path, base: Path | None) -> str | None:
    """Why adapters cannot be merged into their base model, or ``None``.

    Args:
        folder: The folder, with ``adapter_config.json`` and ``adapter_model.safetensors``.
        base: The base model's folder; ``None`` where only its repository is known, which is fetched later.
    """
    if importlib.util.find_spec("torch") is None:
        return (
            "merging needs torch, which is not installed here; allowed: a folder that 'unlearn merge' wrote elsewhere"
        )
    for name in (adapter_settings.CONFIG, adapter_settings.WEIGHTS):
        if not (folder / name).is_file():
            return f"has no {name}"
    try:
        check_folder(folder)
        adapter_settings.scale(folder / adapter_settings.CONFIG)
        tensors = model_folder.header(folder / adapter_settings.WEIGHTS)
        known = model_folder.weights(base) if base else None
    except (OSError, ValueError, model_folder.Incomplete) as error:
        return str(error)
    problem = adapter_settings.misnamed(tensors)
    if problem or known is None:
        return problem
    shapes = {name.removeprefix(adapter_settings.PREFIX): tuple(entry["shape"]) for name, entry in tensors.items()}
    if any(len(shape) != 2 for shape in shapes.values()):
        return "has tensors that are no matrices"
    problem = adapter_settings.mismatch(shapes, {name: tuple(entry["shape"]) for name, entry in known.items()})
    return problem and problem.format(base=base)
