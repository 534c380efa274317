"""Files of a Hugging Face folder that somebody gave: none lies outside of it, and none is read before it was looked at.

Imports no torch: planning uses it too.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

INDEX = "model.safetensors.index.json"
READ = (".json", ".safetensors")
# A config has a few thousand characters, an index a hundred for each tensor.
MOST_BYTES = 64 * 2**20


def check_folder(folder: Path) -> None:
    """Look at every file of a folder, without opening one.

    Links may lead to other files of the folder. In the hub's cache, where a model's folder is ``snapshots/<commit>``,
    they lead to ``blobs`` beside ``snapshots``. Any other link is refused: what it leads to would be read, and copied
    into checkpoints, as a part of the model.

    Args:
        folder: The model's folder. One that is missing has no files.

    Raises:
        ValueError: A link leads out of the folder, or what has the name of weights or settings is no file.
    """
    if not folder.is_dir():
        return
    inside = [folder.resolve()]
    if inside[0].parent.name == "snapshots":
        inside.append(inside[0].parents[1] / "blobs")  # itself, and not what a link of this name leads to
    for path in sorted(folder.iterdir()):
        if path.is_symlink() and not path.is_dir():
            target = path.resolve()
            if not any(target.is_relative_to(each) for each in inside):
                raise ValueError(f"{path}: is a link to {target}, outside of the folder; allowed: a copy in its place")
        if path.suffix in READ and path.exists() and not path.is_file():
            raise ValueError(f"{path}: is not a file")


def weight_map(folder: Path) -> list[str]:
    """The files that a folder's index names, one for each tensor.

    Raises:
        FileNotFoundError: Files that it names are missing.
        ValueError: It is no index, or names what is not a safetensors file of this folder.
    """
    index = folder / INDEX
    names = read_object(index).get("weight_map")
    if not isinstance(names, dict) or not names:
        raise ValueError(f"{index}: must hold 'weight_map', from names of tensors to names of files")
    for tensor, name in names.items():
        if not _is_own_name(name):
            allowed = "allowed: the name of a .safetensors file in the same folder"
            raise ValueError(f"{index}: weight_map: {tensor!r:.100}: {name!r:.200}; {allowed}")
    absent = sorted({name for name in names.values() if not (folder / name).is_file()})
    if absent:
        raise FileNotFoundError(f"{index} names files that are missing: {', '.join(absent)}")
    return list(names.values())


def _is_own_name(name: object) -> bool:
    """Whether it names a file of weights in a folder itself: without ``..``, another folder or the root."""
    return isinstance(name, str) and Path(name).name == name and name.endswith(".safetensors") and "\0" not in name


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in a small file; raises ``ValueError`` with the file's name for anything else."""
    size = path.stat().st_size
    if size > MOST_BYTES:
        raise ValueError(f"{path}: has {size} bytes; allowed: at most {MOST_BYTES}")
    try:
        found = json.loads(path.read_bytes().decode("utf-8"))
    except RecursionError:
        raise ValueError(f"{path}: is nested too deeply") from None
    except ValueError as error:
        raise ValueError(f"{path}: not JSON: {error}") from None
    if not isinstance(found, dict):
        raise ValueError(f"{path}: expected an object, got {found!r:.60}")
    return found
