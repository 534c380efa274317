"""Hugging Face checkpoint folders as files: which there are, where their tensors lie, replacing a folder in one step.

Imports torch, and not megatron-core, which takes seconds.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

from megatron_ext.checkpoint.model_files import INDEX, check_folder, weight_map
from megatron_ext.checkpoint.tokenizer_files import TOKENIZER_FILES

SINGLE = "model.safetensors"
GENERATION = "generation_config.json"
STORED = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def weight_files(folder: Path) -> list[str]:
    """The safetensors files that hold a folder's weights: all lie in it.

    Raises ``FileNotFoundError`` where there are none, and ``ValueError`` where the folder names or links to others.
    """
    check_folder(folder)
    if (folder / SINGLE).exists():  # first, as transformers does
        return [SINGLE]
    if (folder / INDEX).exists():
        return weight_map(folder)
    pickled = sorted(path.name for pattern in ("*.bin", "*.pt", "*.pth") for path in folder.glob(pattern))
    reason = f"; pickled weights ({', '.join(pickled)}) are not read, convert them to safetensors" if pickled else ""
    raise FileNotFoundError(f"{folder} has neither {SINGLE} nor {INDEX}{reason}")


def copy_files(source: Path, names: Iterable[str], target: Path) -> None:
    """Copy those of the files that are there; raises ``ValueError`` where a link leads out of the folder."""
    check_folder(source)
    for name in names:
        if (source / name).is_file():
            shutil.copyfile(source / name, target / name)


def copy_checkpoint(base: Path, folder: Path) -> None:
    """Copy a checkpoint's config, tokenizer and safetensors files, and no others."""
    for file in sorted(set(weight_files(base))):
        shutil.copyfile(base / file, folder / file)
    copy_settings(base, folder)


def copy_settings(base: Path, folder: Path) -> None:
    """Copy a checkpoint's config and tokenizer files, and the index of its safetensors files."""
    index = () if set(weight_files(base)) == {SINGLE} else (INDEX,)
    copy_files(base, ("config.json", GENERATION, *TOKENIZER_FILES, *index), folder)


def partial_folder(folder: Path) -> Path:
    """Where ``replacing`` has what is to become ``folder``, for other processes that write to it."""
    return folder.with_name(f".{folder.name}.partial")


@contextmanager
def replacing(folder: Path) -> Iterator[Path]:
    """A new folder to write to, which gets the name ``folder`` at the end: a kill leaves the old folder or none."""
    partial, replaced = partial_folder(folder), folder.with_name(f".{folder.name}.replaced")
    if replaced.exists() and not folder.exists():
        replaced.rename(folder)  # a run was killed between the two renames below
    for leftover in (partial, replaced):
        if leftover.exists():
            shutil.rmtree(leftover)
    partial.mkdir(parents=True)
    yield partial
    if folder.exists():
        folder.rename(replaced)
    partial.rename(folder)
    if replaced.exists():
        shutil.rmtree(replaced)


def overwrite(folder: Path, tensors: Iterator[tuple[str, Tensor]]) -> None:
    """Write tensors over those of the same names in a folder's safetensors files, in the types that these store.

    Raises ``ValueError`` for a tensor of another shape.
    """
    overwrite_files([folder / file for file in sorted(set(weight_files(folder)))], tensors)


def overwrite_files(files: list[Path], tensors: Iterator[tuple[str, Tensor]]) -> None:
    """``overwrite`` in some safetensors files."""
    opened = [file.open("r+b") for file in files]
    try:
        places = {name: (file, *place) for file in opened for name, place in _places(file).items()}
        for name, tensor in tensors:
            file, dtype, shape, start = places[name]
            if tuple(tensor.shape) != shape:
                raise ValueError(f"{files[0].parent}: {name} has the shape {list(shape)}, not {list(tensor.shape)}")
            file.seek(start)
            file.write(tensor.cpu().to(dtype).contiguous().view(-1).view(torch.uint8).numpy().data)
        for file in opened:
            file.flush()
            os.fsync(file.fileno())  # the run's resume state is deleted next
    finally:
        for file in opened:
            file.close()


def sync(path: Path) -> None:
    """Have a file that was written on disk."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _places(file: BinaryIO) -> dict[str, tuple[torch.dtype | None, tuple[int, ...], int]]:
    """Type, shape and offset in the file of every tensor of an open safetensors file."""
    length = int.from_bytes(file.read(8), "little")
    header = json.loads(file.read(length))
    header.pop("__metadata__", None)
    return {
        name: (STORED.get(entry["dtype"]), tuple(entry["shape"]), 8 + length + entry["data_offsets"][0])
        for name, entry in header.items()
    }
