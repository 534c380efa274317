"""From the few parameters that a run trained to a whole Hugging Face folder: the base's bytes, overwritten in place."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import torch
import torch.distributed as dist
from torch import Tensor

from megatron_ext.model import LanguageModel
from megatron_ext.runtime import Ranks
from megatron_ext.weights.mapping import Entry
from megatron_ext.weights.sources import INDEX, SINGLE, weight_files
from megatron_ext.weights.writing import GENERATION, TOKENIZER_FILES, copy_files, on_first_rank, replacing, tensors_of

STORED = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def save_changed(model: LanguageModel, ranks: Ranks, folder: Path, base: Path) -> None:
    """Write ``base``, a Hugging Face folder, with the parameters of ``model`` that require a gradient in place of its
    own, in the types that ``base`` stores them in; replaces ``folder`` where it exists.

    Copies the config, the tokenizer's files and the safetensors files, and no others. Every tensor that was not
    trained has the same bytes at the same place as in ``base``, parts of the model that were not built among them.
    ``folder`` appears by a rename when it is complete, so a killed run leaves the old one or none.

    Collective, as ``save`` is; a tensor that is not built of trained parameters is never sent. Raises ``ValueError``,
    on world rank 0, for a tensor of another shape than ``base`` has.
    """
    trained: list[set[str]] = [set() for _ in range(ranks.layout.pipeline)]
    own = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    dist.all_gather_object(trained, own, group=ranks.pipeline_group)

    def wanted(stage: int, entry: Entry) -> bool:
        return entry.stored and not trained[stage].isdisjoint(entry.names)

    def write(tensors: Iterator[tuple[str, Tensor]]) -> None:
        with replacing(Path(folder)) as partial:
            _copy(Path(base), partial)
            _overwrite(partial, tensors)

    on_first_rank(write, tensors_of(model, ranks, wanted), ranks)


def _copy(base: Path, partial: Path) -> None:
    files = sorted(set(weight_files(base)))
    for file in files:
        shutil.copyfile(base / file, partial / file)
    index = () if files == [SINGLE] else (INDEX,)
    copy_files(base, ("config.json", GENERATION, *TOKENIZER_FILES, *index), partial)


def _overwrite(folder: Path, tensors: Iterator[tuple[str, Tensor]]) -> None:
    files = sorted(set(weight_files(folder)))
    opened = [(folder / file).open("r+b") for file in files]
    try:
        places = {name: (file, *place) for file in opened for name, place in _places(file).items()}
        for name, tensor in tensors:
            file, dtype, shape, start = places[name]
            if tuple(tensor.shape) != shape:
                raise ValueError(f"{folder}: {name} has the shape {list(shape)}, not {list(tensor.shape)}")
            file.seek(start)
            file.write(tensor.cpu().to(dtype).contiguous().view(-1).view(torch.uint8).numpy().data)
        for file in opened:
            file.flush()
            os.fsync(file.fileno())  # the run's resume state is deleted next
    finally:
        for file in opened:
            file.close()


def _places(file: BinaryIO) -> dict[str, tuple[torch.dtype | None, tuple[int, ...], int]]:
    """Type, shape and offset in the file of every tensor of an open safetensors file."""
    length = int.from_bytes(file.read(8), "little")
    header = json.loads(file.read(length))
    header.pop("__metadata__", None)
    return {
        name: (STORED.get(entry["dtype"]), tuple(entry["shape"]), 8 + length + entry["data_offsets"][0])
        for name, entry in header.items()
    }
