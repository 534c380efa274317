"""From Hugging Face tensors to this rank's parameters."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from megatron_ext.checkpoint import adapter_mapping, mapping, splits
from megatron_ext.checkpoint.model_files import check_folder, read_object
from megatron_ext.checkpoint.tensor_sources import InitialAdapters, InitialValues, SafetensorsFolder, Source
from megatron_ext.config import Runtime, TrainableLayers
from megatron_ext.config.lora import Lora
from megatron_ext.distributed.process_groups import Ranks
from megatron_ext.model import adapters
from megatron_ext.model.build import LanguageModel, build

SHOWN = 5


def load(
    folder: Path, ranks: Ranks, trainable_layers: TrainableLayers | None = None, training: Runtime | None = None
) -> LanguageModel:
    """Load this rank's stage of the model in a Hugging Face folder, in ``ranks.dtype``. No collectives.

    Args:
        folder: The checkpoint.
        ranks: Where this process stands.
        trainable_layers: Which part of the model is built and trained; by default, all of it.
        training: The runtime of a run that needs gradients.

    Returns:
        The stage.

    Raises:
        FileNotFoundError: The folder has no config or no safetensors files.
        ValueError: The model is not supported, or its tensors are not those of its config.
    """
    folder = Path(folder)
    config = read_config(folder)
    source = SafetensorsFolder(folder)
    try:
        mapping.tensor_shapes(config)
    except ValueError as error:
        raise ValueError(f"{folder / 'config.json'}: {error}") from error
    _check(mapping.tensor_shapes(config), source)  # before memory is taken for what the config says and no file holds
    try:
        model = build(config, ranks, trainable_layers, training)
    except ValueError as error:
        raise ValueError(f"{folder}: {error}") from error
    fill(model, ranks, source)
    return model


def add_adapters(model: LanguageModel, ranks: Ranks, lora: Lora, seed: int) -> None:
    """Give a model new adapters, which change nothing yet, and let nothing else be trained. No collectives.

    Raises ``ValueError`` where the model has no such matrices. Values depend on the seed and the tensors' names alone.
    """
    adapters.add(model, lora)
    fill_adapters(model, ranks, InitialAdapters(model.hf_config, lora, model.trainable_layers, seed))


def initialise(config: Mapping[str, Any], ranks: Ranks, seed: int, training: Runtime | None = None) -> LanguageModel:
    """This rank's stage of a new model; its values depend on ``config`` and ``seed`` alone. No collectives."""
    model = build(config, ranks, training=training)
    fill(model, ranks, InitialValues(config, seed))
    return model


@torch.no_grad()
def fill(model: LanguageModel, ranks: Ranks, source: Source) -> None:
    """Set every parameter of ``model`` from its slices; rows that pad the vocabulary become zero. No collectives.

    Args:
        model: This rank's stage.
        ranks: Where this process stands.
        source: The whole model's tensors.

    Raises:
        ValueError: Tensors are missing, not expected, or of another shape than the model's config says.
    """
    _check(mapping.tensor_shapes(model.hf_config), source)
    stage = mapping.entries(model.hf_config, ranks.layout, ranks.pipeline_rank, model.trainable_layers)
    left = _fill(stage, dict(model.named_parameters()), ranks, source)
    if left:
        raise RuntimeError(f"no Hugging Face tensor is known for the parameters {', '.join(left)}")


@torch.no_grad()
def fill_adapters(model: LanguageModel, ranks: Ranks, source: Source) -> None:
    """As ``fill``, of the model's adapters alone."""
    assert model.lora is not None
    _check(adapter_mapping.adapter_shapes(model.hf_config, model.lora, model.trainable_layers), source)
    stage = adapter_mapping.adapter_entries(
        model.hf_config, ranks.layout, ranks.pipeline_rank, model.lora, model.trainable_layers
    )
    _fill(stage, dict(model.named_parameters()), ranks, source)


def _fill(
    stage: list[mapping.Entry], left: dict[str, torch.nn.Parameter], ranks: Ranks, source: Source
) -> dict[str, torch.nn.Parameter]:
    """Set the parameters of some entries; what is left of the parameters given."""
    for entry in stage:
        local = entry.find(left)
        if entry.kind is splits.vocabulary:
            local.zero_()
        for part in entry.parts(ranks.tensor_rank, ranks.layout.tensor):
            place = part.place(local)
            place.copy_(source.read(part.name, part.index).reshape(place.shape))
        left = {name: value for name, value in left.items() if value is not local}
    return left


@torch.no_grad()
def extrapolate(model: LanguageModel, ranks: Ranks, folder: Path, factor: float) -> None:
    """weights <- origin + factor * (weights - origin), in fp32, where the origin is the checkpoint ``folder``.

    The origin is rounded as the model's weights were that were read from it, so that weights that have not moved stay.
    Reads one parameter's slices at a time; nothing where the weights are changed by adapters. No collectives.
    """
    if model.lora is not None:
        adapters.extrapolate(model, factor)
        return
    source, parameters = SafetensorsFolder(folder), dict(model.named_parameters())
    for entry in mapping.entries(model.hf_config, ranks.layout, ranks.pipeline_rank, model.trainable_layers):
        for part in entry.parts(ranks.tensor_rank, ranks.layout.tensor):
            place = part.place(entry.find(parameters))
            origin = source.read(part.name, part.index).to(place.device, place.dtype).float().reshape(place.shape)
            place.copy_(origin + factor * (place.float() - origin))


def read_config(folder: Path) -> dict[str, Any]:
    """``config.json`` of a Hugging Face folder.

    Raises ``FileNotFoundError`` where it is missing, and ``ValueError`` where it is no object or a link leads out of
    the folder.
    """
    path = Path(folder) / "config.json"
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist: a checkpoint is a folder with config.json and *.safetensors")
    check_folder(Path(folder))
    return read_object(path)


def _check(expected: Mapping[str, tuple[int, ...]], source: Source) -> None:
    given = source.shapes
    ignored = {mapping.OUTPUT} - set(expected)
    missing = [name for name in expected if name not in given]
    unexpected = [
        name
        for name in given
        if name not in expected and name not in ignored and not name.endswith("rotary_emb.inv_freq")
    ]
    shapes = [
        f"{name} {list(given[name])} instead of {list(shape)}"
        for name, shape in expected.items()
        if name in given and tuple(given[name]) != shape
    ]
    problems = {"missing tensors": missing, "tensors that are not expected": unexpected, "wrong shapes": shapes}
    found = [f"{what}: {_first(names)}" for what, names in problems.items() if names]
    if found:
        raise ValueError(f"{source} does not fit its config: {'; '.join(found)}")


def _first(names: list[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more
