"""One row of what is forgotten, as unlearning will see it: its text, its tokens, and which of them are labelled."""

from __future__ import annotations

import tempfile
from pathlib import Path

from pipeline.config.experiment import Config
from pipeline.config.located_yaml import ConfigError
from pipeline.data.errors import DataError
from pipeline.data.settings import FetchedSource, FilesSource, FolderTokenizer
from pipeline.hub.description import HubError, describe
from pipeline.specs import PrepareSpec
from pipeline.workflow.data_jobs import published
from pipeline.workflow.data_sets import own_answers_names
from pipeline.workflow.plan import Plan


def lines(plan: Plan, index: int) -> list[str]:
    """The row, after the data have been prepared in a temporary folder.

    Args:
        plan: A checked experiment's jobs.
        index: The row of the first topic's forget set, from 0.

    Returns:
        Its prompt and its labels as text, and a line a token; labelled ones are marked with ``*``.

    Raises:
        ConfigError: The data or the tokenizer are not on this machine, a row is bad, or there is no such row.
    """
    from megatron_ext.data.sequences import Sequences
    from pipeline.data.tokenizer import Tokenizer
    from pipeline.steps.prepare import prepare

    config = plan.config
    spec = next(job.spec for job in plan.jobs.values() if isinstance(job.spec, PrepareSpec))
    name, _ = next(iter(config.data.topics(config.experiment.split).values()))
    if isinstance(spec.source, FetchedSource) and not spec.source.path.is_dir():
        raise ConfigError(["--show-row: the data are on the hub: run until 'fetch' first, or give --data-root"])
    with tempfile.TemporaryDirectory() as folder:
        given = {"output": Path(folder), "cache": None, "sets": [], "tokenizer": _tokenizer(config, spec)}
        given["source"] = _without_answers(config, spec)
        try:
            prepare(spec.model_copy(update=given))
            rows = Sequences.load(Path(folder) / "train" / f"{name}.npz")
            tokenizer = Tokenizer.load(Path(folder) / "tokenizer")
        except DataError as error:
            raise ConfigError([f"--show-row: {error}"]) from None
    if not 0 <= index < len(rows):
        raise ConfigError([f"--show-row: {index}; the set {name!r} has the rows 0 to {len(rows) - 1}"])
    ids, prompt = rows.row(index)
    texts = [tokenizer.decode(part, skip_special=False) for part in (ids[:prompt].tolist(), ids[prompt:].tolist())]
    tokens = [
        f"{'*' if place >= prompt else ' '} {number:>7}  {tokenizer.decode([number], skip_special=False)!r}"
        for place, number in enumerate(ids.tolist())
    ]
    head = f"row {index} of {name}: {len(ids)} tokens, {len(ids) - prompt} of them labelled (*)"
    return [head, f"prompt  {texts[0]!r}", f"labels  {texts[1]!r}", *tokens]


def _without_answers(config: Config, spec: PrepareSpec) -> object:
    """The source; what target is still to answer, which says nothing of a row to forget, is a set to forget in it."""
    source, own = spec.source, own_answers_names(config)
    if not isinstance(source, FilesSource) or not own:
        return source
    forgotten = source.sets[source.splits[spec.forget_split].forget[0]]
    return source.model_copy(update={"sets": {**source.sets, **dict.fromkeys(own, forgotten)}})


def _tokenizer(config: Config, spec: PrepareSpec) -> object:
    """The tokenizer, where it is before anything is fetched."""
    if not isinstance(spec.tokenizer, FolderTokenizer):
        return spec.tokenizer
    which = spec.tokenizer.path.parent.name
    checkpoint = published(config)[which]
    if checkpoint.folder is not None:
        return FolderTokenizer(path=checkpoint.folder)
    assert checkpoint.hub is not None  # a checkpoint has exactly one of the two
    try:
        return FolderTokenizer(path=describe(checkpoint.hub, checkpoint.revision))
    except HubError as error:
        raise ConfigError([f"--show-row: {error}"]) from None
