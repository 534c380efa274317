"""A folder of adapters as ``peft`` writes and loads it, and merging it into a checkpoint.

The folder has ``adapter_config.json`` and ``adapter_model.safetensors``, in which ``base_model.model.`` stands before
the names of the model's matrices. Imports torch, and not megatron-core, which takes seconds.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import Tensor

from megatron_ext.checkpoint import folders
from megatron_ext.checkpoint.model_files import check_folder, read_object

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."


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
        self.scale = _scale(self.folder / CONFIG)
        self._file = safe_open(self.folder / WEIGHTS, framework="pt")
        stored = self._file.keys()
        wrong = [n for n in stored if not n.startswith(PREFIX) or not n.endswith((".lora_A.weight", ".lora_B.weight"))]
        if wrong:
            allowed = f"{PREFIX}<matrix>.lora_A.weight and lora_B.weight"
            raise ValueError(f"{self.folder / WEIGHTS}: has the tensor {wrong[0]!r:.100}; allowed: {allowed}")
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
        known = _shapes(base)
        for name, (rank, inputs) in self.shapes.items():
            if name.endswith("lora_B.weight"):
                continue
            matrix, other = name.removesuffix(".lora_A.weight"), name.replace(".lora_A.", ".lora_B.")
            needed = known.get(f"{matrix}.weight")
            given = self.shapes.get(other, ())
            if needed is None or needed != (*given[:1], inputs) or given[1:] != (rank,):
                shape = "no such tensor" if needed is None else list(needed)
                raise ValueError(
                    f"{self}: {name} {[rank, inputs]}, lora_B {list(given)}: {base} has {matrix}.weight: {shape}"
                )
        lonely = [n for n in self.shapes if n.replace(".lora_B.", ".lora_A.") not in self.shapes]
        if lonely:
            raise ValueError(f"{self}: {lonely[0]} has no lora_A beside it")

    def __str__(self) -> str:
        return str(self.folder)


# What makes of adapters more than a sum of two matrices' products and a weight, or of one rank several.
REFUSED = (
    *("fan_in_fan_out", "modules_to_save", "rank_pattern", "alpha_pattern", "layer_replication", "lora_bias"),
    *("alora_invocation_tokens", "target_parameters", "trainable_token_indices", "arrow_config", "kasa_config"),
    "monteclora_config",
)
INITIAL = (None, True, False, "gaussian", "orthogonal", "eva")  # others change the base model's weights


def _scale(path: Path) -> float:
    config = read_object(path)
    kinds = [key for key in config if key.startswith("use_") and key != "use_rslora"]
    allowed: dict[str, tuple[Any, ...]] = {"peft_type": ("LORA",), "bias": ("none", None), "init_lora_weights": INITIAL}
    allowed |= {key: (None, False, [], {}) for key in (*REFUSED, *kinds)}
    for key, values in allowed.items():
        if config.get(key) not in values:
            shown = ", ".join(map(repr, values))
            raise ValueError(f"{path}: {key}: {config.get(key)!r:.100}; allowed: {shown}")
    rank, alpha = config.get("r"), config.get("lora_alpha")
    if not isinstance(rank, int) or rank < 1 or not isinstance(alpha, int | float):
        raise ValueError(f"{path}: r: {rank!r:.50}, lora_alpha: {alpha!r:.50}; allowed: a rank and a number")
    return float(alpha / (rank**0.5 if config.get("use_rslora") else rank))


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
