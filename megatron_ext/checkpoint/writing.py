"""From the ranks' parameters to a Hugging Face folder, one parameter at a time."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch
import torch.distributed as dist
from torch import Tensor

from megatron_ext.checkpoint.folders import GENERATION, SINGLE, copy_files, replacing
from megatron_ext.checkpoint.mapping import Entry, entries, replicated, tensor_shapes
from megatron_ext.checkpoint.model_files import INDEX
from megatron_ext.checkpoint.tokenizer_files import TOKENIZER_FILES
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

    Collective: every rank calls it, and returns after the rename. Each parameter is gathered over the tensor group and
    sent to world rank 0, which alone writes; a rank holds at most two copies of one parameter more than its own.

    Args:
        model: This rank's stage.
        ranks: Where this process stands.
        folder: Where the checkpoint goes.
        tokenizer_from: A folder whose tokenizer files and ``generation_config.json`` are copied.
        max_shard_bytes: Bound on the tensors of a file of weights; one larger tensor has a file of its own.
    """

    def write(tensors: Iterator[tuple[str, Tensor]]) -> None:
        with replacing(Path(folder)) as partial:
            _write(tensors, model.hf_config, ranks.dtype, partial, tokenizer_from, max_shard_bytes)

    on_first_rank(write, tensors_of(model, ranks), ranks)


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


def _write(
    tensors: Iterator[tuple[str, Tensor]],
    hf: Mapping[str, Any],
    dtype: torch.dtype,
    partial: Path,
    tokenizer_from: Path | None,
    max_shard_bytes: int,
) -> None:
    name = str(dtype).removeprefix("torch.")
    config = {**hf, "dtype": name, "torch_dtype": name}  # transformers reads the first since 4.56, others the second
    (partial / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    if tokenizer_from is not None:
        copy_files(Path(tokenizer_from), (*TOKENIZER_FILES, GENERATION), partial)
    _write_tensors(tensors, tensor_shapes(hf), dtype, partial, max_shard_bytes)


def _write_tensors(
    tensors: Iterator[tuple[str, Tensor]],
    shapes: Mapping[str, tuple[int, ...]],
    dtype: torch.dtype,
    folder: Path,
    max_shard_bytes: int,
) -> None:
    """Stream tensors, which arrive in the order of ``shapes``, into safetensors files planned from their shapes."""
    sizes = {name: math.prod(shape) * dtype.itemsize for name, shape in shapes.items()}
    shards = _shards(sizes, max_shard_bytes)
    weight_map = {}
    for number, names in enumerate(shards, start=1):
        file = SINGLE if len(shards) == 1 else f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        with (folder / file).open("wb") as out:
            _write_header(out, {name: shapes[name] for name in names}, sizes, dtype)
            for name in names:
                given, tensor = next(tensors)
                expected = (name, shapes[name], dtype)
                if (given, tuple(tensor.shape), tensor.dtype) != expected:
                    raise AssertionError(f"{given} {tuple(tensor.shape)} {tensor.dtype} arrived in place of {expected}")
                out.write(tensor.cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
                weight_map[name] = file
            out.flush()
            os.fsync(out.fileno())  # the run's resume state is deleted next
    if next(tensors, None) is not None:
        raise AssertionError("more tensors arrived than were planned")
    if len(shards) > 1:
        index = {"metadata": {"total_size": sum(sizes.values())}, "weight_map": weight_map}
        (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n")


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


def _shards(sizes: Mapping[str, int], limit: int) -> list[list[str]]:
    shards: list[list[str]] = [[]]
    used = 0
    for name, size in sizes.items():
        if shards[-1] and used + size > limit:
            shards.append([])
            used = 0
        shards[-1].append(name)
        used += size
    return shards


@torch.no_grad()
def tensors_of(
    model: LanguageModel, ranks: Ranks, wanted: Callable[[int, Entry], bool] = lambda stage, entry: entry.stored
) -> Iterator[tuple[str, Tensor]]:
    """The model's Hugging Face tensors, whole and in order, on world rank 0.

    The other ranks of its data-parallel rank must exhaust this iterator too, which yields them nothing. ``wanted``
    chooses by pipeline stage and entry, on every rank the same.
    """
    parameters = dict(model.named_parameters())
    stages = dist.get_process_group_ranks(ranks.pipeline_group)
    for stage in range(ranks.layout.pipeline):
        for entry in entries(model.hf_config, ranks.layout, stage, model.trainable_layers):
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


def _gather(entry: Entry, local: Tensor, ranks: Ranks) -> list[Tensor]:
    """Every tensor-parallel rank's shard, on tensor rank 0; of a replicated parameter, the one there is."""
    if ranks.layout.tensor == 1 or entry.kind is replicated:
        return [local]
    root = dist.get_process_group_ranks(ranks.tensor_group)[0]
    shards = [torch.empty_like(local) for _ in range(ranks.layout.tensor)] if ranks.tensor_rank == 0 else None
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
