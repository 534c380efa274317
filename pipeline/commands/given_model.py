"""What the files of a model that somebody gives say: its sizes, and the layouts that fit it."""

from __future__ import annotations

from pathlib import Path

from megatron_ext.config import Layout, even_split
from pipeline.config import sizing
from pipeline.config.located_yaml import ConfigError
from pipeline.config.sizing import Shape
from pipeline.data.tokenizer import Tokenizer, ids_needed
from pipeline.hub import local_files


def shape_of(model: Path, new_tokens: int) -> Shape:
    """The sizes of the model in a folder.

    Args:
        model: A Hugging Face folder.
        new_tokens: New tokens that an answer may have.

    Raises:
        ConfigError: The model cannot be run here, its tokenizer does not fit it, or answers do not.
    """
    config = local_files.architecture(model)
    if config is None:
        raise ConfigError([f"--model: {model / 'config.json'} is not a JSON object"])
    try:
        shape = Shape.of(config)
    except (ValueError, KeyError, TypeError) as error:
        what = f"{error} is missing" if isinstance(error, KeyError) else str(error)
        raise ConfigError([f"--model: {model / 'config.json'}: {what}"]) from None
    size = ids_needed(Tokenizer.load(model), ())  # without the template's tokens, which the step looks at
    if size > shape.vocabulary:
        message = f"its tokenizer has {size} ids, but vocab_size of its config.json is {shape.vocabulary}"
        raise ConfigError([f"--model: {model}: {message}: they do not fit"])
    if new_tokens >= shape.context:
        message = f"an answer may have {new_tokens} new tokens; the model's context is {shape.context}"
        raise ConfigError([f"--option: {message}"])
    return shape


def fitting_layout(layout: Layout, shape: Shape, device: str) -> Layout:
    """The layout with its pipeline split, where layers do not divide evenly: the first stages have one more.

    Raises:
        ConfigError: The model cannot be laid out so, or this machine cannot start the ranks.
    """
    if layout.pipeline_split is None and layout.pipeline <= shape.layers and shape.layers % layout.pipeline:
        split = even_split(shape.layers, layout.pipeline)
        layout = layout.model_copy(update={"pipeline_split": split})
    problems = [*sizing.layout_problems(layout, shape), *filter(None, [sizing.device_problem(layout, device)])]
    if problems:
        raise ConfigError([f"--layout: {message}" for message in problems])
    return layout
