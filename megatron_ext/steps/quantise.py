"""What quantised inference would read of a checkpoint: ``python -m megatron_ext.steps.quantise SPEC.yaml`` (see
specs.QuantiseSpec).

The matrices of the decoder blocks are rounded, and the rounded values are written back in the types that the checkpoint
stores: embeddings, norms, biases and the output layer stay as they are, as under bitsandbytes. What follows reads it as
any checkpoint, and needs no kernel of its own. With a scale s and codes c, a weight w becomes s * c where c is nearest:

- ``int8``: s = max |w| / 127 of each output row, c in -127..127 (LLM.int8, arXiv 2208.07339, without its outliers,
  which are a matter of activations).
- ``int4``: s = max |w| / 7 of each ``group`` of weights along a row, c in -7..7; a row's last group may be shorter.
- ``fp4`` and ``nf4``: s = max |w| of each ``group`` of weights of the matrix laid out row by row, c in bitsandbytes'
  tables (nf4: QLoRA, arXiv 2305.14314; fp4: what ``load_in_4bit`` means where nothing else is said).

Everything is computed in fp32. bitsandbytes computes ``int8`` from weights rounded to fp16.
"""

from __future__ import annotations

import itertools
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from megatron_ext.checkpoint.folders import STORED, copy_checkpoint, overwrite, replacing, weight_files
from megatron_ext.config.quantisation import BLOCKS, Quantisation
from megatron_ext.specs import QuantiseSpec, read
from megatron_ext.summary import Clock

MATRIX = re.compile(r"model\.layers\.\d+\..+(_proj(_with_mqa)?|\.experts\.\d+\.w[123])\.weight")
LARGEST = {"int8": 127, "int4": 7}
NF4 = (-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635,
       -0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634,
       0.33791524171829224, 0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0)  # fmt: skip
FP4 = tuple(value / 12 for value in (0.0, 0.0625, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0))  # and the same below zero
# Where it goes from one entry of FP4 to the next, in bitsandbytes' own figures, which decide what a tie becomes.
FP4_BETWEEN = (0.00260417, 0.0859375, 0.20833333, 0.29166667, 0.4166667, 0.583333, 0.8333333)
AT_A_TIME = 2**24  # weights: what is rounded at a time takes a few times 64 MiB


def main(argv: list[str] | None = None) -> None:
    """Write ``checkpoint/`` and ``summary.json`` into the output folder: ``matrices`` and ``parameters`` that were
    rounded, ``relative_error`` (the norm of what rounding changed, by that of the matrices), ``backend`` and its
    version.

    Reads one matrix at a time. Raises ``ValueError`` for a checkpoint without such matrices or with weights that are
    not finite, and ``ModuleNotFoundError`` where bitsandbytes was asked for and is not installed.
    """
    (path,) = sys.argv[1:] if argv is None else argv
    clock = Clock()
    spec: QuantiseSpec = read(Path(path), QuantiseSpec)
    backend, version = chosen(spec)
    clock.mark("startup")
    facts: dict[str, Any] = {"matrices": 0, "parameters": 0}
    changed = whole = 0.0

    def tensors() -> Iterator[tuple[str, Tensor]]:
        nonlocal changed, whole
        for name, matrix in matrices(spec.checkpoint):
            before = matrix.float()
            if not torch.isfinite(before).all():
                raise ValueError(f"{spec.checkpoint}: {name} has weights that are not finite")
            after = rounded(before, spec) if backend == "builtin" else by_bitsandbytes(matrix, spec)
            after = after.to(matrix.dtype)
            facts["matrices"] += 1
            facts["parameters"] += matrix.numel()
            changed += float((after.float() - before).pow(2).sum(dtype=torch.float64))
            whole += float(before.pow(2).sum(dtype=torch.float64))
            yield name, after

    with replacing(spec.output / "checkpoint") as partial:
        copy_checkpoint(spec.checkpoint, partial)
        overwrite(partial, tensors())
        if not facts["matrices"]:
            raise ValueError(f"{spec.checkpoint}: no tensor is a decoder block's matrix (model.layers.*_proj.weight)")
    clock.mark("work")
    error = (changed / whole) ** 0.5 if whole else 0.0
    clock.write(spec.output, **facts, relative_error=error, backend=backend, bitsandbytes=version)


def chosen(spec: Quantisation) -> tuple[str, str | None]:
    """Whose code rounds, and bitsandbytes' version where it is that; raises ``ModuleNotFoundError``."""
    if spec.backend == "builtin":
        return "builtin", None
    asked = spec.backend == "bitsandbytes"
    known = spec.scheme != "int4" and spec.group in (None, *BLOCKS)
    if not asked and not (known and torch.cuda.is_available()):
        return "builtin", None
    try:
        import bitsandbytes
    except ModuleNotFoundError as error:
        if not asked:
            return "builtin", None
        raise ModuleNotFoundError(f"backend: 'bitsandbytes' was asked for and cannot be imported: {error}") from error
    return "bitsandbytes", bitsandbytes.__version__


def matrices(folder: Path) -> Iterator[tuple[str, Tensor]]:
    """Name and values of every matrix of a checkpoint's decoder blocks, file by file, one in memory at a time.

    Raises ``ValueError`` for one that is not of a floating-point type.
    """
    from safetensors import safe_open

    for file in sorted(set(weight_files(folder))):
        with safe_open(folder / file, framework="pt") as opened:
            for name in opened.keys():  # noqa: SIM118
                if MATRIX.fullmatch(name):
                    kind = opened.get_slice(name).get_dtype()
                    if kind not in STORED:
                        raise ValueError(f"{folder}: {name} is of type {kind}; allowed: {', '.join(STORED)}")
                    yield name, opened.get_tensor(name)


def rounded(matrix: Tensor, how: Quantisation) -> Tensor:
    """fp32 ``[out, in]`` -> what a scheme makes of it, fp32 ``[out, in]``."""
    # A multiple of the group's length in rows is one in weights too: groups end where the pieces do.
    rows = max(1, AT_A_TIME // (matrix.shape[1] * how.group_size)) * how.group_size
    return torch.cat([_rounded(piece, how) for piece in matrix.split(min(rows, len(matrix)))])


def _rounded(matrix: Tensor, how: Quantisation) -> Tensor:
    if how.scheme == "int8":
        return _by_integers(matrix, LARGEST["int8"])
    if how.scheme == "int4":
        return _in_groups(matrix, how.group_size, lambda groups: _by_integers(groups, LARGEST["int4"]))
    nearest = _nearest_nf4 if how.scheme == "nf4" else _nearest_fp4
    return _in_groups(matrix.reshape(1, -1), how.group_size, lambda groups: _by_table(groups, nearest)).view_as(matrix)


def _in_groups(rows: Tensor, size: int, function: Callable[[Tensor], Tensor]) -> Tensor:
    """``[n, m]`` -> a function of its groups ``[n, groups, size]``, as ``[n, m]``; zeros fill up the last of a row."""
    width = rows.shape[1]
    size = min(size, width)  # or a row would be filled up to one group, however long
    filled = torch.nn.functional.pad(rows, (0, -width % size))
    return function(filled.view(len(rows), -1, size)).view(len(rows), -1)[:, :width]


def _by_integers(groups: Tensor, largest: int) -> Tensor:
    # The quotient first: a group's largest weight stays as it is, to the bit, and rounding twice is rounding once.
    most = _largest(groups)
    return torch.round(groups * (largest / most)) / largest * most


def _by_table(groups: Tensor, nearest: Callable[[Tensor], Tensor]) -> Tensor:
    most = _largest(groups)
    return nearest(groups / most) * most


def _largest(groups: Tensor) -> Tensor:
    """The largest magnitude of each group; of one that has zeros only, any number that can be divided by."""
    most = groups.abs().amax(dim=-1, keepdim=True)
    return torch.where(most > 0, most, 1.0)


def _nearest_nf4(values: Tensor) -> Tensor:
    return _chosen(values, NF4, [(below + above) / 2 for below, above in itertools.pairwise(NF4)])


def _nearest_fp4(values: Tensor) -> Tensor:
    return torch.copysign(_chosen(values.abs(), FP4, FP4_BETWEEN), values)


def _chosen(values: Tensor, table: Sequence[float], between: Sequence[float]) -> Tensor:
    """The table's entry whose stretch a value lies in; a value ``between`` two belongs to the smaller."""
    entries, ends = (torch.tensor(numbers, dtype=torch.float32) for numbers in (table, between))
    return entries[torch.bucketize(values, ends, out_int32=True)]


def by_bitsandbytes(matrix: Tensor, how: Quantisation) -> Tensor:
    """``[out, in]`` -> what bitsandbytes makes of it and reads back, fp32 ``[out, in]`` on the CPU; computed on a GPU
    where there is one."""
    from bitsandbytes import functional

    device = "cuda" if torch.cuda.is_available() else "cpu"
    if how.scheme == "int8":
        codes, largest, _ = functional.int8_vectorwise_quant(matrix.to(device, torch.float16))
        return functional.int8_vectorwise_dequant(codes, largest).float().cpu()
    # As one row: blocks go on over the ends of rows, which bitsandbytes 0.50 on CPUs forgets when it reads them back.
    flat = matrix.to(device, torch.float32).reshape(-1)
    packed, state = functional.quantize_4bit(flat, blocksize=how.group_size, quant_type=how.scheme)
    return functional.dequantize_4bit(packed, state).view(matrix.shape).cpu()


if __name__ == "__main__":
    main()
