"""From the ranks' adapters to a folder for ``peft``, and from there to a merged checkpoint."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from megatron_ext.checkpoint import folders
from megatron_ext.checkpoint.adapter_folder import CONFIG, PREFIX, WEIGHTS, AdapterFolder, merge_file
from megatron_ext.checkpoint.writing import on_first_rank, tensors_of
from megatron_ext.distributed.collectives import barrier
from megatron_ext.distributed.process_groups import Ranks
from megatron_ext.model.build import LanguageModel


def save(model: LanguageModel, ranks: Ranks, folder: Path, base: Path) -> None:
    """Write the model's adapters, in ``ranks.dtype``; replaces the folder where it exists, in one rename.

    Collective over all ranks, as ``writing.save`` is. World rank 0 holds all adapters meanwhile.

    Args:
        model: This rank's stage.
        ranks: Where this process stands.
        folder: Where they go.
        base: The checkpoint that the model was loaded from, which the folder names.
    """

    def write(tensors: Iterator[tuple[str, Tensor]]) -> None:
        with folders.replacing(Path(folder)) as partial:
            named = {PREFIX + name: tensor.cpu().contiguous() for name, tensor in tensors}
            save_file(named, partial / WEIGHTS, metadata={"format": "pt"})
            (partial / CONFIG).write_text(json.dumps(_config(model, list(named), base), indent=2) + "\n")
            for file in (WEIGHTS, CONFIG):
                folders.sync(partial / file)

    on_first_rank(write, tensors_of(model, ranks, adapters=True), ranks)


def _config(model: LanguageModel, names: list[str], base: Path) -> dict[str, Any]:
    assert model.lora is not None
    alpha = model.lora.alpha
    part = model.trainable_layers
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": str(base),
        "r": model.lora.rank,
        "lora_alpha": int(alpha) if alpha.is_integer() else alpha,
        "lora_dropout": 0.0,
        "target_modules": sorted({name.split(".")[-3] for name in names}),
        "layers_to_transform": None if part is None else part.trained_layers,
        "bias": "none",
        "fan_in_fan_out": False,
        "use_rslora": False,
        "use_dora": False,
        "modules_to_save": None,
        "inference_mode": True,
    }


def merge(base: Path, adapter: Path, folder: Path, ranks: Ranks) -> None:
    """``adapter_folder.merge`` by all ranks, to which the files of weights are dealt. Collective; all return after the
    folder has got its name.

    Args:
        base: The checkpoint.
        adapter: A folder as ``save`` writes it, which every rank can read.
        folder: Where the merged checkpoint goes; replaced where it exists.
        ranks: Where this process stands.

    Raises:
        ValueError: An adapter belongs to no matrix of the checkpoint, or does not fit it.
    """
    found = AdapterFolder(adapter)
    found.check(base)
    files = sorted(set(folders.weight_files(base)))
    leader = ranks.world_rank == 0
    partial = folders.partial_folder(folder)
    with folders.replacing(folder) if leader else nullcontext():
        if leader:
            folders.copy_settings(base, partial)
        barrier(ranks)  # the folder is there
        for number, file in enumerate(files):
            if number % ranks.world_size == ranks.world_rank:
                merge_file(base / file, found, partial / file)
        barrier(ranks)  # every file is there
    barrier(ranks)
