"""A folder of adapters as ``peft`` writes and loads it, and merging it into a checkpoint.

The folder has ``adapter_config.json`` and ``adapter_model.safetensors``, in which ``base_model.model.`` stands before
the names of the model's matrices. Imports torch, and not megatron-core, which takes seconds.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

from safetensors import safe_open
from torch import Tensor

from megatron_ext.checkpoint import folders
from megatron_ext.checkpoint.adapter_settings import CONFIG, PREFIX, WEIGHTS, mismatch, misnamed, scale
from megatron_ext.checkpoint.model_files import check_folder


class AdapterFolder:
    """The tensors of such a folder, by the names that they have here (``tensor_sources.Source``).

    Attributes:
        shapes: Every tensor's name and shape.
        scale: What the product of a matrix's two tensors is multiplied by.
    """

    def __init__(self, folder: Path) -> None:
        """Read the settings and the header; raises ``ValueError`` for adapters that are no sum of matrices."""
        self.folder = Path(folder)
        for name in (CONFIG, WEIGHTS):
            if not (self.folder / name).is_file():
                raise FileNotFoundError(f"{self.folder / name} does not exist")
        check_folder(self.folder)
        self.scale = scale(self.folder / CONFIG)
        self._file = safe_open(self.folder / WEIGHTS, framework="pt")
        stored = self._file.keys()
        problem = misnamed(stored)
        if problem:
            raise ValueError(f"{self.folder / WEIGHTS}: {problem}")
        self.shapes: Mapping[str, tuple[int, ...]] = {
            name.removeprefix(PREFIX): tuple(self._file.get_slice(name).get_shape()) for name in stored
        }

    def read(self, name: str, index: tuple[slice, ...]) -> Tensor:
        part: Tensor = self._file.get_slice(PREFIX + name)[index or (slice(None),)]
        return part

    def change(self, matrix: str) -> Tensor | None:
        """``scale * B A`` of a matrix ``<name>.weight``, fp32; None where it has no adapter."""
        name = matrix.removesuffix(".weight")
        if f"{name}.lora_A.weight" not in self.shapes:
            return None
        first, second = (self.read(f"{name}.lora_{which}.weight", ()).float() for which in "AB")
        return self.scale * (second @ first)

    def check(self, base: Path) -> None:
        """Raise ``ValueError`` where the adapters are not those of matrices of the checkpoint ``base``."""
        problem = mismatch(self.shapes, _shapes(base))
        if problem:
            raise ValueError(f"{self}: {problem.format(base=base)}")

    def __str__(self) -> str:
        return str(self.folder)


def _shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """The tensors of a checkpoint."""
    found: dict[str, tuple[int, ...]] = {}
    for name in sorted(set(folders.weight_files(folder))):
        with safe_open(folder / name, framework="pt") as file:
            found |= {tensor: tuple(file.get_slice(tensor).get_shape()) for tensor in file.keys()}  # noqa: SIM118
    return found


def merge(base: Path, adapter: Path, folder: Path) -> None:
    """Write a copy of a checkpoint whose matrices have their adapters' products added, in the types that it stores.

    Sums are taken in fp32 of the stored values. Every other tensor has the same bytes at the same place as in ``base``.
    The folder appears by a rename when it is complete. A few matrices are held at a time.

    Args:
        base: The checkpoint.
        adapter: The folder of adapters.
        folder: Where the merged checkpoint goes; replaced where it exists.

    Raises:
        ValueError: An adapter belongs to no matrix of the checkpoint, or does not fit it.
    """
    found = AdapterFolder(adapter)
    found.check(base)
    with folders.replacing(folder) as partial:
        folders.copy_settings(base, partial)
        for file in sorted(set(folders.weight_files(base))):
            merge_file(base / file, found, partial / file)


def merge_file(source: Path, adapter: AdapterFolder, target: Path) -> None:
    """Write a copy of a safetensors file in which the matrices that have adapters are changed by them."""
    shutil.copyfile(source, target)
    folders.overwrite_files([target], _merged(source, adapter))


def _merged(file: Path, adapter: AdapterFolder) -> Iterator[tuple[str, Tensor]]:
    """The matrices of a safetensors file that have an adapter, with it; fp32."""
    with safe_open(file, framework="pt") as stored:
        for name in stored.keys():  # noqa: SIM118
            change = adapter.change(name)
            if change is not None:
                yield name, stored.get_tensor(name).float() + change
