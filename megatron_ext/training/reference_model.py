"""The model before unlearning, for losses that need more of it than a cached number: a second forward pass.

Its hidden states at a loss's positions are computed for a step's micro-batches before the trained model's own passes,
and are small; logits are made of them one micro-batch at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor

from megatron_ext.data.collate import MicroBatch
from megatron_ext.distributed.process_groups import Ranks
from megatron_ext.inference.pipeline_forward import PipelineForward
from megatron_ext.model import adapters
from megatron_ext.model.build import LanguageModel
from megatron_ext.model.packed_rows import reading_of


class ReferenceModel(Protocol):
    """Where hidden states of the model before unlearning come from."""

    @property
    def logits(self) -> Callable[[Tensor], Tensor] | None:
        """Makes logits of its hidden states (see ``LanguageModel.logits``); None where no loss asks for them."""

    def hidden(self, batches: Sequence[MicroBatch]) -> list[Tensor | None]:
        """Hidden states of each micro-batch at its positions. Collective over the pipeline.

        Args:
            batches: The micro-batches.

        Returns:
            Of each ``[N, H]``, without gradient, on the last pipeline stage; None elsewhere.
        """


class ReferenceCopy:
    """A second copy of the model.

    Costs this rank's share of the weights once, and a forward pass for each micro-batch. Where the weights are
    offloaded, they lie in pinned host memory, each module's are on the device only while the module runs, and every
    pass transfers all of them. (Loading takes them through the device, when neither gradients nor optimizer state are
    there yet.)
    """

    def __init__(self, model: LanguageModel, ranks: Ranks, offload: bool = False) -> None:
        """Freeze ``model``, and offload it.

        Args:
            model: The second copy, which this object keeps.
            ranks: Where this process stands.
            offload: Whether the weights go to host memory.
        """
        self._model, self._ranks = model.eval().requires_grad_(False), ranks
        if offload:
            _offload(model)

    @property
    def logits(self) -> Callable[[Tensor], Tensor]:
        return self._model.logits

    def hidden(self, batches: Sequence[MicroBatch]) -> list[Tensor | None]:
        return _hidden(self._model, self._ranks, batches)


class ReferenceMatrices:
    """The trained model itself, with the original values of the few parameters that training changes.

    Costs one copy of those parameters and a forward pass.
    """

    def __init__(self, model: LanguageModel, ranks: Ranks) -> None:
        self._trained, self._ranks = model, ranks
        self._original = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}

    @property
    def logits(self) -> None:
        return None

    def hidden(self, batches: Sequence[MicroBatch]) -> list[Tensor | None]:
        with self._swapped():
            return _hidden(self._trained, self._ranks, batches)

    @contextmanager
    def _swapped(self) -> Iterator[None]:
        parameters = dict(self._trained.named_parameters())
        trained = {name: parameters[name].data for name in self._original}
        _point(parameters, self._original)
        try:
            yield
        finally:
            _point(parameters, trained)


class ReferenceBase:
    """The trained model itself, with its adapters switched off.

    Costs a forward pass, and no copy of any weight.
    """

    def __init__(self, model: LanguageModel, ranks: Ranks) -> None:
        self._model, self._ranks = model, ranks

    @property
    def logits(self) -> Callable[[Tensor], Tensor] | None:
        return self._model.logits if self._model.trainable_layers is None else None

    def hidden(self, batches: Sequence[MicroBatch]) -> list[Tensor | None]:
        with adapters.disabled(self._model):
            return _hidden(self._model, self._ranks, batches)


def _point(parameters: Mapping[str, torch.nn.Parameter], values: Mapping[str, Tensor]) -> None:
    for name, value in values.items():
        parameters[name].data = value


@torch.no_grad()
def _hidden(model: LanguageModel, ranks: Ranks, batches: Sequence[MicroBatch]) -> list[Tensor | None]:
    stages = PipelineForward(model, ranks)
    hidden_NH: list[Tensor | None] = []  # of each micro-batch
    for batch in batches:
        hidden_SBH = stages.forward(batch.tokens, reading_of(batch))
        hidden_NH.append(None if hidden_SBH is None else model.gather_positions(hidden_SBH, batch.index))
    stages.finish()
    return hidden_NH


def _offload(model: LanguageModel) -> None:
    """Move every parameter to host memory, and to its device only while a module runs that uses it.

    In between a parameter is empty, so that what uses it elsewhere fails instead of computing with it.
    """
    home: dict[torch.nn.Parameter, tuple[Tensor, Tensor]] = {}
    for parameter in model.parameters():
        value = parameter.detach()
        host = value.cpu().pin_memory() if value.is_cuda else value.clone()
        home[parameter] = host, value.new_empty(0)
        parameter.data = home[parameter][1]

    def fetch(module: torch.nn.Module, _: Any) -> None:
        for parameter in used[module]:
            # A copy even where host and device are one, so that there too the host's value is never worked on.
            parameter.data = home[parameter][0].to(home[parameter][1].device, non_blocking=True, copy=True)

    def release(module: torch.nn.Module, *_: Any) -> None:
        for parameter in used[module]:
            parameter.data = home[parameter][1]

    used = {module: list(module.parameters(recurse=False)) for module in model.modules()}
    if model.post_process and model.share_embeddings_and_output_weights:
        # Given to the output layer as an argument: the embedding's own, on a stage that has both.
        used[model.output_layer] = [model.shared_embedding_or_output_weight()]
    for module, parameters in used.items():
        if parameters:
            module.register_forward_pre_hook(fetch)
            module.register_forward_hook(release)
