"""From the few parameters that a run trained to a whole Hugging Face folder: the base's bytes, overwritten in place."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from torch import Tensor

from megatron_ext.checkpoint.folders import copy_checkpoint, overwrite, replacing
from megatron_ext.checkpoint.mapping import Entry
from megatron_ext.checkpoint.writing import on_first_rank, tensors_of
from megatron_ext.distributed.collectives import gather_from_ranks
from megatron_ext.distributed.process_groups import Ranks
from megatron_ext.model.build import LanguageModel


def save_changed(model: LanguageModel, ranks: Ranks, folder: Path, base: Path) -> None:
    """Write a copy of a checkpoint in which the trained parameters are new, in the types that it stores.

    The config, the tokenizer's files and the safetensors files are copied, and no others. Every tensor that was not
    trained has the same bytes at the same place as in ``base``, parts of the model that were not built among them. The
    folder appears by a rename when it is complete, so a killed run leaves the old one or none.

    Collective, as ``save`` is; a tensor that is not built of trained parameters is never sent.

    Args:
        model: This rank's stage; its parameters that require a gradient are written.
        ranks: Where this process stands.
        folder: Where the checkpoint goes; replaced where it exists.
        base: The Hugging Face folder that the model was loaded from.

    Raises:
        ValueError: On world rank 0, for a tensor of another shape than ``base`` has.
    """
    own = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    trained = [set(names) for names in gather_from_ranks(own, ranks, ranks.pipeline_group)]

    def wanted(stage: int, entry: Entry) -> bool:
        return entry.stored and not trained[stage].isdisjoint(entry.names)

    def write(tensors: Iterator[tuple[str, Tensor]]) -> None:
        with replacing(Path(folder)) as partial:
            copy_checkpoint(Path(base), partial)
            overwrite(partial, tensors)

    on_first_rank(write, tensors_of(model, ranks, wanted), ranks)
