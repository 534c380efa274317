"""What makes a run the run it is: what it is told, what it reads, and the code and the packages that compute it.

Only a run of the same identity goes on from what another has left. Imports neither torch nor megatron-core.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
from pathlib import Path
from typing import Any

import megatron_ext

PACKAGES = ("torch", "megatron-core", "numpy")


def code() -> str:
    """SHA-256 of this package's sources, so that code that has changed never meets what the code before has left."""
    root, total = Path(megatron_ext.__file__).parent, hashlib.sha256()
    for file in sorted(root.rglob("*.py")):
        digest = hashlib.sha256(file.read_bytes()).hexdigest()
        total.update(f"{file.relative_to(root).as_posix()}\n{digest}\n".encode())
    return total.hexdigest()


def versions() -> dict[str, str]:
    """The versions of the packages that compute."""
    return {name: importlib.metadata.version(name) for name in PACKAGES}


def digests(identity: dict[str, Any]) -> dict[str, str]:
    """A digest of each part of an identity, code and versions among them.

    Args:
        identity: Parts by name. The entries of one that is a dictionary are parts too, as ``spec.seed``.
    """
    found: dict[str, str] = {}
    for name, part in {**identity, "code": code(), "versions": versions()}.items():
        entries = {f"{name}.{key}": value for key, value in part.items()} if isinstance(part, dict) else {name: part}
        for key, value in entries.items():
            text = json.dumps(value, sort_keys=True, default=str)
            found[key] = hashlib.sha256(text.encode()).hexdigest()
    return found


def differences(known: Any, wanted: dict[str, str]) -> list[str]:
    """The names of the parts that differ, with ``known`` read from a file; all of them where it is no identity."""
    if not isinstance(known, dict):
        return sorted(wanted)
    return sorted(name for name in {**known, **wanted} if known.get(name) != wanted.get(name))
