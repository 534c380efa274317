"""Whether the steps' image is whole, and of the versions that this checkout asks for, by what was written beside it."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

from pipeline.config.site import ROOT

BUILD = ROOT / "containers" / "build"


def damage(image: Path) -> str | None:
    """What is wrong with an image: another size or SHA-256 than its record says; ``None`` where there is no record.

    A file whose SHA-256 was right is read again only when its size or its time has changed. That is remembered beside
    it, where the folder can be written.
    """
    record = _record(image)
    if record is None:
        return None
    state, again = image.stat(), "copy it again, or build it anew"
    if state.st_size != record.get("bytes"):
        return f"image: {str(image)!r} has {state.st_size} bytes and not {record.get('bytes')}: {again}"
    stamp, checked = f"{state.st_size} {state.st_mtime_ns} {record.get('sha256')}", image.with_suffix(".checked")
    with suppress(OSError, UnicodeDecodeError):
        if checked.read_text(encoding="utf-8") == stamp:
            return None
    with image.open("rb") as stream:
        found = hashlib.file_digest(stream, "sha256").hexdigest()
    if found != record.get("sha256"):
        wanted = str(record.get("sha256"))
        return f"image: {str(image)!r} is damaged: SHA-256 {found[:12]}... and not {wanted[:12]}...: {again}"
    with suppress(OSError):  # then it is read again at the next start
        checked.write_text(stamp, encoding="utf-8")
    return None


def older(image: Path) -> str | None:
    """That an image was built from other versions or sources than this checkout's; ``None`` where it was not, or where
    nothing says so."""
    record = _record(image)
    kind = record.get("kind") if record else None
    if record is None or kind not in ("cpu", "gpu"):
        return None
    base = ["--base", str(record["base"])] if kind == "gpu" and "base" in record else []
    command = [sys.executable, str(BUILD), kind, "--print-name", *base]
    asked = subprocess.run(command, capture_output=True, text=True, check=False)
    now = asked.stdout.strip()
    if asked.returncode or now == f"unlearn-{kind}-{str(record.get('content'))[:12]}.sif":
        return None
    make = "make image" if kind == "gpu" else "make image-cpu"
    return f"image: {image.name} is not of this checkout, whose versions and sources would make {now} (`{make}`)"


def _record(image: Path) -> dict[str, Any] | None:
    """What ``containers/build`` wrote beside an image."""
    try:
        found = json.loads(image.with_suffix(".json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None
