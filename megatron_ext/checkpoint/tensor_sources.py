"""Where weights come from: a folder of safetensors files, or a seeded draw. Both hand out slices of named tensors."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import safe_open
from torch import Tensor

from megatron_ext.checkpoint.adapter_mapping import adapter_shapes
from megatron_ext.checkpoint.folders import weight_files
from megatron_ext.checkpoint.mapping import tensor_shapes
from megatron_ext.config import TrainableLayers
from megatron_ext.config.lora import Lora
from megatron_ext.model.families import family_of

READABLE = ("F64", "F32", "F16", "BF16")


class Source(Protocol):
    """Named tensors that can be read in part."""

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Every tensor's name and shape."""

    def read(self, name: str, index: tuple[slice, ...]) -> Tensor:
        """``tensor[index]`` of the tensor ``name``, on the CPU; an empty ``index`` is the whole tensor."""

    def __str__(self) -> str:
        """What to call it in an error."""


class SafetensorsFolder:
    """The tensors of a Hugging Face folder: ``model.safetensors``, or the files of ``model.safetensors.index.json``.

    Only headers are read at first; ``read`` takes from the file what its slice needs. Raises ``FileNotFoundError`` for
    a folder that has no such file, and ``ValueError`` for a tensor that is not of a floating-point type.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)
        files = weight_files(self.folder)
        opened = {file: safe_open(self.folder / file, framework="pt") for file in sorted(set(files))}
        self._file = {name: handle for handle in opened.values() for name in handle.keys()}  # noqa: SIM118
        self.shapes = {name: tuple(file.get_slice(name).get_shape()) for name, file in self._file.items()}

    def read(self, name: str, index: tuple[slice, ...]) -> Tensor:
        part = self._file[name].get_slice(name)
        if part.get_dtype() not in READABLE:
            raise ValueError(f"{self}: {name} is of type {part.get_dtype()}; allowed: {', '.join(READABLE)}")
        return part[index or (slice(None),)]

    def __str__(self) -> str:
        return str(self.folder)


class InitialValues:
    """Values to train from: norms multiply by 1, biases are 0, all else is normal with the config's
    ``initializer_range``, fp32.

    Each tensor is drawn whole, from a generator seeded by (``seed``, name), so that values do not depend on the layout.
    """

    def __init__(self, hf: Mapping[str, Any], seed: int) -> None:
        self.shapes = tensor_shapes(hf)
        self._deviation = float(hf.get("initializer_range", 0.02))
        self._seed, self._norm = seed, 0.0 if family_of(hf).zero_centred_norms else 1.0

    def read(self, name: str, index: tuple[slice, ...]) -> Tensor:
        value = torch.empty(self.shapes[name])
        if name.endswith("norm.weight"):
            value.fill_(self._norm)
        elif name.endswith("bias"):
            value.zero_()
        else:
            value.normal_(0.0, self._deviation, generator=_generator(self._seed, name))
        return value[index] if index else value

    def __str__(self) -> str:
        return f"initial values of seed {self._seed}"


class InitialAdapters:
    """Adapters that change nothing: ``B`` is zero. ``A`` is uniform within ``1 / sqrt(inputs)``, as peft has it, fp32;
    each tensor is drawn as those of ``InitialValues`` are."""

    def __init__(self, hf: Mapping[str, Any], lora: Lora, trainable_layers: TrainableLayers | None, seed: int) -> None:
        self.shapes, self._seed = adapter_shapes(hf, lora, trainable_layers), seed

    def read(self, name: str, index: tuple[slice, ...]) -> Tensor:
        value = torch.zeros(self.shapes[name])
        if name.endswith("lora_A.weight"):
            bound = value.size(1) ** -0.5
            value.uniform_(-bound, bound, generator=_generator(self._seed, name))
        return value[index] if index else value

    def __str__(self) -> str:
        return f"initial adapters of seed {self._seed}"


def _generator(seed: int, name: str) -> torch.Generator:
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
