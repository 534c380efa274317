"""The container image of the steps, and its content's name."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from pipeline.config.site import ROOT, Site

IMAGES = ROOT / "containers" / "images"
# Variables that tell a step's provenance what image it runs in.
IMAGE, IMAGE_SHA256 = "UNLEARN_IMAGE", "UNLEARN_IMAGE_SHA256"
INSIDE = "APPTAINERENV_"  # begins the names of variables that Apptainer sets, without it, in containers


def image(site: Site, gpus: bool) -> Path:
    """The image's file by its content: what `site.image`, or the link that `containers/build` left, points to.

    A rebuilt image has another name, from which Snakemake sees that steps must run again. It need not exist.
    """
    return (site.image or IMAGES / f"unlearn-{'gpu' if gpus else 'cpu'}.sif").absolute().resolve()


def image_sha256(image: Path) -> str | None:
    """The digest that `containers/build` wrote beside the image; ``None`` where there is none that can be read, as for
    an image from elsewhere."""
    digest = (record(image) or {}).get("sha256")
    return digest if isinstance(digest, str) else None


def record(image: Path) -> dict[str, Any] | None:
    """What `containers/build` wrote beside an image; ``None`` where nothing can be read."""
    try:
        found = json.loads(image.with_suffix(".json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def name_image(image: Path) -> None:
    """Tell provenance, which is written inside the container, what the container is, where the caller has not."""
    os.environ.setdefault(f"{INSIDE}{IMAGE}", str(image.resolve()))
    digest = image_sha256(image.resolve())
    if digest:
        os.environ.setdefault(f"{INSIDE}{IMAGE_SHA256}", digest)
