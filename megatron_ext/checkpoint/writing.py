"""From the ranks' parameters to a Hugging Face folder, one parameter at a time."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
import torch.distributed as dist
from torch import Tensor

from megatron_ext.checkpoint.adapter_mapping import adapter_entries, stacked
from megatron_ext.checkpoint.folders import GENERATION, SINGLE, copy_files, partial_folder, replacing
from megatron_ext.checkpoint.mapping import Entry, entries, tensor_shapes
from megatron_ext.checkpoint.model_files import INDEX
from megatron_ext.checkpoint.splits import replicated
from megatron_ext.checkpoint.tokenizer_files import TOKENIZER_FILES
from megatron_ext.config import Layout
from megatron_ext.distributed.collectives import barrier
from megatron_ext.distributed.process_groups import Ranks
from megatron_ext.model.build import LanguageModel

DTYPES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}


def save(
    model: LanguageModel,
    ranks: Ranks,
    folder: Path,
    tokenizer_from: Path | None = None,
    max_shard_bytes: int = 5_000_000_000,
) -> None:
    """Write ``model`` as a Hugging Face folder, in ``ranks.dtype``; replaces the folder where it exists.

    The folder appears by a rename when it is complete, so a killed run leaves the old one or none, never half of one.

    Collective: every rank calls it, and returns after the rename. Where all tensors fit one file, each parameter is
    gathered over the tensor group and sent to world rank 0, which alone writes. Otherwise a file has tensors of one
    pipeline stage, and the files are dealt to the ranks that have the stage, over all data-parallel ranks; a file's
    parameters are gathered to its rank, which writes while others write theirs. A rank holds at most two copies of one
    parameter more than its own.

    Args:
        model: This rank's stage.
        ranks: Where this process stands.
        folder: Where the checkpoint goes.
        tokenizer_from: A folder whose tokenizer files and ``generation_config.json`` are copied.
        max_shard_bytes: Bound on the tensors of a file of weights; one larger parameter has a file of its own.
    """
    shapes = tensor_shapes(model.hf_config)
    if _bytes(shapes, ranks.dtype) > max_shard_bytes:
        _save_files(model, ranks, Path(folder), tokenizer_from, max_shard_bytes)
        return

    def write(tensors: Iterator[tuple[str, Tensor]]) -> None:
        with replacing(Path(folder)) as partial:
            _begin(partial, model.hf_config, ranks.dtype, tokenizer_from)
            _write_file(partial / SINGLE, shapes, ranks.dtype, tensors)
            if next(tensors, None) is not None:
                raise AssertionError("more tensors arrived than were planned")

    on_first_rank(write, tensors_of(model, ranks), ranks)


@dataclass(frozen=True)
class File:
    """One of a checkpoint's files of weights: parameters of a pipeline stage, and the ranks that gather and write it.

    Attributes:
        name: The file's name.
        stage: The pipeline stage that has the parameters.
        entries: The parameters.
        data_rank: Which of the data-parallel ranks gathers them.
        tensor_rank: Which of its tensor-parallel ranks writes.
    """

    name: str
    stage: int
    entries: list[Entry]
    data_rank: int
    tensor_rank: int

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Name and shape of its tensors, in order."""
        return {name: shape for entry in self.entries for name, shape in entry.shapes.items()}


def files_of(model: LanguageModel, layout: Layout, dtype: torch.dtype, limit: int) -> list[File]:
    """A checkpoint's files of at most ``limit`` bytes each, but of one parameter at least; the same on every rank."""
    dealt: list[tuple[int, int, list[Entry]]] = []  # stage, number in the stage, entries
    for stage in range(layout.pipeline):
        parts: list[list[Entry]] = [[]]
        used = 0
        for entry in entries(model.hf_config, layout, stage, model.trainable_layers):
            if not entry.stored:
                continue
            size = _bytes(entry.shapes, dtype)
            if parts[-1] and used + size > limit:
                parts.append([])
                used = 0
            parts[-1].append(entry)
            used += size
        dealt += [(stage, number, part) for number, part in enumerate(parts) if part]
    return [
        File(
            f"model-{place:05d}-of-{len(dealt):05d}.safetensors",
            stage,
            part,
            data_rank=number % layout.data,
            tensor_rank=number // layout.data % layout.tensor,
        )
        for place, (stage, number, part) in enumerate(dealt, start=1)
    ]


@torch.no_grad()
def _save_files(model: LanguageModel, ranks: Ranks, folder: Path, tokenizer_from: Path | None, limit: int) -> None:
    """``save`` into several files, each written by one rank."""
    leader = ranks.world_rank == 0
    files = files_of(model, ranks.layout, ranks.dtype, limit)
    with replacing(folder) if leader else nullcontext(partial_folder(folder)) as partial:
        if leader:
            _begin(partial, model.hf_config, ranks.dtype, tokenizer_from)
        barrier(ranks)  # the folder is there
        for file in files:
            if (file.stage, file.data_rank) != (ranks.pipeline_rank, ranks.data_rank):
                continue
            tensors = _file_tensors(file, model, ranks)
            if file.tensor_rank == ranks.tensor_rank:
                _write_file(partial / file.name, file.shapes, ranks.dtype, tensors)
            else:
                for _ in tensors:
                    raise AssertionError("tensors arrive on the rank that writes them only")
        barrier(ranks)  # every file is there
        if leader:
            weight_map = {name: file.name for file in files for name in file.shapes}
            total = sum(_bytes(file.shapes, ranks.dtype) for file in files)
            index = {"metadata": {"total_size": total}, "weight_map": weight_map}
            (partial / INDEX).write_text(json.dumps(index, indent=2) + "\n")
    barrier(ranks)


def _file_tensors(file: File, model: LanguageModel, ranks: Ranks) -> Iterator[tuple[str, Tensor]]:
    """The file's Hugging Face tensors, whole and in order, on the rank that writes it. Collective over the tensor group
    that gathers them; its other ranks must exhaust this iterator too, which yields them nothing."""
    parameters = dict(model.named_parameters())
    for entry in file.entries:
        shards = _gather(entry, entry.find(parameters).detach(), ranks, file.tensor_rank)
        if file.tensor_rank == ranks.tensor_rank:
            yield from _assemble(entry, shards, ranks.layout.tensor)


def _bytes(shapes: Mapping[str, tuple[int, ...]], dtype: torch.dtype) -> int:
    return sum(math.prod(shape) for shape in shapes.values()) * dtype.itemsize


def on_first_rank(
    write: Callable[[Iterator[tuple[str, Tensor]]], None], tensors: Iterator[tuple[str, Tensor]], ranks: Ranks
) -> None:
    """Run ``write(tensors)`` on world rank 0 while the ranks of its data-parallel rank send; all return after it."""
    if ranks.world_rank == 0:
        write(tensors)
    elif ranks.data_rank == 0:
        for _ in tensors:
            raise AssertionError("tensors arrive on world rank 0 only")
    barrier(ranks)


def _begin(partial: Path, hf: Mapping[str, Any], dtype: torch.dtype, tokenizer_from: Path | None) -> None:
    """Write what belongs to a checkpoint beside weights."""
    name = str(dtype).removeprefix("torch.")
    config = {**hf, "dtype": name, "torch_dtype": name}  # transformers reads the first since 4.56, others the second
    (partial / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    if tokenizer_from is not None:
        copy_files(Path(tokenizer_from), (*TOKENIZER_FILES, GENERATION), partial)


def _write_file(
    path: Path, shapes: Mapping[str, tuple[int, ...]], dtype: torch.dtype, tensors: Iterator[tuple[str, Tensor]]
) -> None:
    """Stream tensors, which arrive in the order of ``shapes``, into a safetensors file planned from their shapes."""
    sizes = {name: math.prod(shape) * dtype.itemsize for name, shape in shapes.items()}
    with path.open("wb") as out:
        _write_header(out, shapes, sizes, dtype)
        for name in shapes:
            given, tensor = next(tensors)
            expected = (name, shapes[name], dtype)
            if (given, tuple(tensor.shape), tensor.dtype) != expected:
                raise AssertionError(f"{given} {tuple(tensor.shape)} {tensor.dtype} arrived in place of {expected}")
            out.write(tensor.cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
        out.flush()
        os.fsync(out.fileno())  # the run's resume state is deleted next


def _write_header(
    out: BinaryIO, shapes: Mapping[str, tuple[int, ...]], sizes: Mapping[str, int], dtype: torch.dtype
) -> None:
    """The header of the safetensors format: its length (8 bytes, little-endian), then JSON padded to 8 bytes."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, shape in shapes.items():
        header[name] = {"dtype": DTYPES[dtype], "shape": shape, "data_offsets": [offset, offset + sizes[name]]}
        offset += sizes[name]
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    out.write(len(text).to_bytes(8, "little") + text)


@torch.no_grad()
def tensors_of(
    model: LanguageModel,
    ranks: Ranks,
    wanted: Callable[[int, Entry], bool] = lambda stage, entry: entry.stored,
    adapters: bool = False,
) -> Iterator[tuple[str, Tensor]]:
    """The Hugging Face tensors of a model or of its adapters, whole and in order, on world rank 0.

    The other ranks of its data-parallel rank must exhaust this iterator too, which yields them nothing. ``wanted``
    chooses by pipeline stage and entry, on every rank the same.
    """
    parameters = dict(model.named_parameters())
    stages = dist.get_process_group_ranks(ranks.pipeline_group)
    for stage in range(ranks.layout.pipeline):
        if adapters and model.lora is not None:
            found = adapter_entries(model.hf_config, ranks.layout, stage, model.lora, model.trainable_layers)
        else:
            found = entries(model.hf_config, ranks.layout, stage, model.trainable_layers)
        for entry in found:
            if not wanted(stage, entry):
                continue
            if stage == ranks.pipeline_rank:
                shards = _gather(entry, entry.find(parameters).detach(), ranks)
                if ranks.tensor_rank == 0:
                    for name, tensor in _assemble(entry, shards, ranks.layout.tensor):
                        if stage == 0:
                            yield name, tensor
                        else:
                            dist.send(tensor, stages[0], group=ranks.pipeline_group)
            elif ranks.pipeline_rank == 0 and ranks.tensor_rank == 0:
                for name, shape in entry.shapes.items():
                    tensor = torch.empty(shape, dtype=ranks.dtype, device=ranks.device)
                    dist.recv(tensor, stages[stage], group=ranks.pipeline_group)
                    yield name, tensor


def _gather(entry: Entry, local: Tensor, ranks: Ranks, to: int = 0) -> list[Tensor]:
    """Every tensor-parallel rank's shard, on tensor rank ``to``; of a replicated parameter, the one there is."""
    if ranks.layout.tensor == 1 or entry.kind in (replicated, stacked):
        return [local]
    root = dist.get_process_group_ranks(ranks.tensor_group)[to]
    shards = [torch.empty_like(local) for _ in range(ranks.layout.tensor)] if ranks.tensor_rank == to else None
    # gloo sends garbage, without an error, from a tensor that is not contiguous.
    dist.gather(local.contiguous(), shards, dst=root, group=ranks.tensor_group)
    return shards or []


def _assemble(entry: Entry, shards: list[Tensor], size: int) -> Iterator[tuple[str, Tensor]]:
    whole = {name: shards[0].new_empty(shape) for name, shape in entry.shapes.items()}
    for rank, shard in enumerate(shards):
        for part in entry.parts(rank, size):
            place = whole[part.name][part.index]
            place.copy_(part.place(shard).reshape(place.shape))
    yield from whole.items()
