"""Repositories of the Hugging Face hub, by way of its local cache, and files put where a step's output belongs.

Only the fetch steps use this module, and plans of models that are named on the hub. No message holds an access token.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from megatron_ext.atomic_files import new_folder
from pipeline.data.errors import printable
from pipeline.hub import answers

TOKEN = re.compile(r"\bhf_\w{8,}")


class HubError(Exception):
    """A repository's files cannot be had; the message says why and what to do."""

    def __init__(self, message: str) -> None:
        super().__init__(printable(message))


def snapshot(
    repository: str,
    revision: str | None,
    patterns: Sequence[str],
    kind: Literal["model", "dataset"],
    unwanted: Sequence[str] = (),
) -> tuple[Path, str]:
    """Bring files of a repository into the hub's local cache.

    Without a connection, or with ``HF_HUB_OFFLINE=1``, the folder is what the cache holds and may lack files.

    Args:
        repository: owner and name
        revision: commit, tag or branch; ``None``: the main branch
        patterns: names of the files that are wanted, with ``*``
        kind: whether the repository is a model or a data set
        unwanted: names of files that are left out, with ``*``

    Returns:
        the cache's folder, and the commit that it is of

    Raises:
        HubError: the files cannot be had; the message says why and what to do
    """
    from huggingface_hub import snapshot_download

    answers.guard()
    try:
        folder = snapshot_download(
            repository,
            repo_type=kind,
            revision=revision,
            allow_patterns=list(patterns),
            ignore_patterns=list(unwanted),
        )
    # The library raises a different class at each stage, of the operating system's and the network libraries' as well.
    except Exception as error:
        where = f"{kind} {repository!r} at revision {revision or 'main'!r}"
        raise HubError(f"hub: {_without_token(f'{where}: {_reason(error, repository, kind)}')}") from error
    return Path(folder), Path(folder).name


def place(source: Mapping[str, Path], target: Path) -> int:
    """Make a folder of files in one rename.

    On the cache's file system the files are hard links, so that there is no second copy of the weights.

    Args:
        source: path below ``target`` -> file
        target: the folder, which is replaced

    Returns:
        size of all files in bytes
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    for old in target.parent.glob(f".{target.name}.*"):
        shutil.rmtree(old)  # of a run that was killed
    temporary = new_folder(target)
    try:
        for name, path in source.items():
            (temporary / name).parent.mkdir(parents=True, exist_ok=True)
            _link_or_copy(path.resolve(), temporary / name)
        size = sum((temporary / name).stat().st_size for name in source)
        if target.exists():
            shutil.rmtree(target)
        os.replace(temporary, target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return size


def _link_or_copy(path: Path, target: Path) -> None:
    try:
        os.link(path, target)
    except OSError:  # another file system, or a cache of another user's
        shutil.copyfile(path, target)


def _reason(error: Exception, repository: str, kind: str) -> str:
    from huggingface_hub import constants, errors, get_token

    page = f"{constants.ENDPOINT}/{'datasets/' if kind == 'dataset' else ''}{repository}"
    if isinstance(error, errors.GatedRepoError):
        if get_token() is None:
            return f"it is gated and no token is set. Ask for access on {page}, then 'hf auth login' or set HF_TOKEN"
        return f"it is gated, and the token that is set has no access. Ask for it on {page}"
    if isinstance(error, errors.RevisionNotFoundError):
        return f"it has no such revision. {page}/commits lists them"
    if isinstance(error, errors.RepositoryNotFoundError):
        token = "no token is set" if get_token() is None else "the token that is set has no access"
        return f"there is no such repository, or it is private and {token}"
    if isinstance(error, errors.HFValidationError):
        return f"not a repository's name, which is 'owner/name': {_first_line(error)}"
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"no space is left for {constants.HF_HUB_CACHE}. HF_HOME, or hf_home in site.yaml, names another place"
    if isinstance(error, PermissionError):
        return f"{error}. HF_HOME, or hf_home in site.yaml, names another place for the cache"
    part = isinstance(error, errors.IncompleteSnapshotError)
    lacking = f"the cache {constants.HF_HUB_CACHE} {'holds only a part of it' if part else 'does not hold it'}"
    if constants.HF_HUB_OFFLINE:
        return f"HF_HUB_OFFLINE is set and {lacking}"
    if isinstance(error, errors.LocalEntryNotFoundError):
        cause = error.__cause__ or error
        return f"the hub cannot be reached ({type(cause).__name__}: {_first_line(cause)}) and {lacking}"
    return f"{type(error).__name__}: {_first_line(error)}"


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or ["no details"])[0].rstrip(".")


def _without_token(text: str) -> str:
    from huggingface_hub import get_token

    token = get_token()
    return TOKEN.sub("hf_***", text.replace(token, "hf_***") if token else text)
