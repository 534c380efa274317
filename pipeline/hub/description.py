"""What a model's repository on the hub says of it without its weights: all that a plan is checked against."""

from __future__ import annotations

import sys
from functools import cache
from pathlib import Path

from megatron_ext.checkpoint.tokenizer_files import TOKENIZER_FILES, VOCABULARY_FILES
from pipeline.hub.download import HubError, snapshot

FILES = ("config.json", "generation_config.json", "adapter_config.json", *TOKENIZER_FILES)


@cache
def describe(repository: str, revision: str | None) -> Path:
    """A folder with the config and tokenizer files of a model on the hub.

    The hub's local cache is asked first, so that a plan is made again without a connection: on the nodes of a cluster,
    for one.

    Args:
        repository: Owner and name.
        revision: Commit, tag or branch; ``None``: the main branch.

    Raises:
        HubError: The files cannot be had; the message says why and what to do.
    """
    here = _cached(repository, revision)
    if here is not None:
        return here
    print(f"hub: fetching config and tokenizer of {repository}", file=sys.stderr, flush=True)
    folder, _ = snapshot(repository, revision, FILES, "model", ("*/*",))
    return folder


def _cached(repository: str, revision: str | None) -> Path | None:
    """The cache's folder, where it has what a model needs to be described."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    for name in VOCABULARY_FILES:
        try:
            found = [try_to_load_from_cache(repository, file, revision=revision) for file in ("config.json", name)]
        except HFValidationError:  # no repository can be called so, which asking the hub for it explains
            return None
        if all(isinstance(path, str) for path in found):
            return Path(str(found[0])).parent
    return None


__all__ = ["FILES", "HubError", "describe"]
