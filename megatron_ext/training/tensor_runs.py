"""Which elements of a rank's gradient belong to which Hugging Face tensor.

Megatron fuses matrices (queries, keys and values; gate and up) and splits them over ranks. Rules that work tensor by
tensor mean those of the Hugging Face checkpoint, whatever the layout, so this takes each parameter apart again.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from megatron_ext.checkpoint import adapter_mapping, mapping
from megatron_ext.checkpoint.splits import Part
from megatron_ext.distributed.process_groups import Ranks
from megatron_ext.model.build import LanguageModel


@dataclass(frozen=True)
class Run:
    """Elements ``[low, high)`` of a flattened parameter, or of a piece of the gradient, that one tensor has there.

    Attributes:
        tensor: The tensor's number among ``names(model)``.
        low: The first element.
        high: The element after the last.
    """

    tensor: int
    low: int
    high: int

    def within(self, low: int, high: int) -> Run | None:
        """The part in ``[low, high)``, counted from ``low``; None where there is none."""
        begin, end = max(self.low, low), min(self.high, high)
        return Run(self.tensor, begin - low, end - low) if begin < end else None


def names(model: LanguageModel) -> list[str]:
    """The Hugging Face tensors of the whole model, or of its adapters where it is trained by them: those of other ranks
    too, in the same order on every rank."""
    if model.lora is not None:
        return list(adapter_mapping.adapter_shapes(model.hf_config, model.lora, model.trainable_layers))
    return list(mapping.tensor_shapes(model.hf_config))


def runs(model: LanguageModel, ranks: Ranks) -> dict[Tensor, list[Run]]:
    """Of each trained parameter of this rank the runs of tensors in it, in order; padding of the vocabulary is in none.

    Args:
        model: This rank's stage.
        ranks: Where this process stands.

    Returns:
        Runs by parameter.
    """
    numbers = {name: i for i, name in enumerate(names(model))}
    parameters = dict(model.named_parameters())
    place = model.hf_config, ranks.layout, ranks.pipeline_rank
    if model.lora is not None:
        stage = adapter_mapping.adapter_entries(*place, model.lora, model.trainable_layers)
    else:
        stage = mapping.entries(*place, model.trainable_layers)
    found = {}
    for entry in stage:
        parameter = entry.find(parameters)
        if parameter.requires_grad:
            parts = entry.parts(ranks.tensor_rank, ranks.layout.tensor)
            found[parameter] = sorted(_of_parts(parameter, parts, numbers), key=lambda run: run.low)
    return found


def _of_parts(parameter: Tensor, parts: list[Part], numbers: Mapping[str, int]) -> Iterator[Run]:
    # Every part is some rows of the parameter, whole ones.
    count, width = parameter.size(0), parameter.numel() // parameter.size(0)
    for part in parts:
        rows = part.place(torch.arange(count)).flatten()
        begins = [0, *(torch.nonzero(rows.diff() != 1).flatten() + 1).tolist(), len(rows)]
        for begin, end in pairwise(begins):
            first = int(rows[begin])
            yield Run(numbers[part.name], first * width, (first + end - begin) * width)
