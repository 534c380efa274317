"""Wheels without a build system; only the standard library is used, as a wheel is built with nothing else around."""

from __future__ import annotations

import base64
import hashlib
import zipfile
from collections.abc import Sequence
from pathlib import Path


def wheel(
    folder: Path, name: str, version: str, requires: Sequence[str] = (), files: dict[str, str] | None = None
) -> Path:
    """A wheel of one module that knows its version, or of ``files``."""
    module = name.replace("-", "_")
    contents = files or {f"{module}/__init__.py": f"version = {version!r}\n"}
    extras = ["Provides-Extra: steps"] if any("extra ==" in text for text in requires) else []
    lines = ["Metadata-Version: 2.1", f"Name: {name}", f"Version: {version}", *extras]
    lines += [f"Requires-Dist: {text}" for text in requires]
    info = f"{module}-{version}.dist-info"
    contents[f"{info}/METADATA"] = "\n".join(lines) + "\n"
    contents[f"{info}/WHEEL"] = "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    hashes = {path: hashlib.sha256(text.encode()).digest() for path, text in contents.items()}
    record = [f"{path},sha256={base64.urlsafe_b64encode(h).decode().rstrip('=')}," for path, h in hashes.items()]
    contents[f"{info}/RECORD"] = "\n".join([*record, f"{info}/RECORD,,"]) + "\n"
    path = folder / f"{module}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for file, text in contents.items():
            archive.writestr(file, text)
    return path
