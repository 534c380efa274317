"""Whether the steps' image is whole, and of the versions that this checkout asks for, by what was written beside it."""

from __future__ import annotations

import hashlib
import re
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

from pipeline.config.site import ROOT
from pipeline.launch.image import record as image_record

BUILD = ROOT / "containers" / "build"
DEFINITION = ROOT / "containers" / "unlearn-gpu.def"


def damage(image: Path) -> str | None:
    """What is wrong with an image: another size or SHA-256 than its record says, or a record that does not say them;
    ``None`` where there is no record.

    A file whose SHA-256 was right is read again only when its size or its time has changed. That is remembered beside
    it, where the folder can be written.
    """
    record = image_record(image) or {}
    if not {"bytes", "sha256"} <= record.keys():
        file = image.with_suffix(".json")
        what = "cannot be read as the record of the image beside it: copy both again, or remove it"
        return f"image: {str(file)!r} {what}" if file.exists() else None
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
    record = image_record(image) or {}
    kind = record.get("kind")
    if kind not in ("cpu", "gpu"):
        return None
    base = ["--base", str(record["base"])] if kind == "gpu" and _base_was_given(record) else []
    command = [sys.executable, str(BUILD), kind, "--print-name", *base]
    asked = subprocess.run(command, capture_output=True, text=True, check=False)
    now = asked.stdout.strip()
    if asked.returncode or now == f"unlearn-{kind}-{str(record.get('content'))[:12]}.sif":
        return None
    make = "make image" if kind == "gpu" else "make image-cpu"
    return f"image: {image.name} is not of this checkout, whose versions and sources would make {now} (`{make}`)"


def _base_was_given(record: dict[str, Any]) -> bool:
    """Whether an image was built with ``--base``, and not from the definition's base, which a checkout may pin anew."""
    given = record.get("base_given")
    if isinstance(given, bool):
        return given
    # Records of before it was written down: a site's copy has another name, whatever its tag or digest.
    name = re.sub(r":[^:/]*$", "", str(record.get("base", "")).partition("@")[0])
    default = re.search(r"^\s+BASE=(\S+)$", DEFINITION.read_text(encoding="utf-8"), re.MULTILINE)
    return bool(name) and default is not None and not default[1].startswith(f"{name}:")
