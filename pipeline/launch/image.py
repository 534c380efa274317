"""The container image of the steps, and its content's name."""

from __future__ import annotations

import json
from pathlib import Path

from pipeline.config.site import ROOT, Site

IMAGES = ROOT / "containers" / "images"


def image(site: Site, gpus: bool) -> Path:
    """The image's file by its content: what `site.image`, or the link that `containers/build` left, points to.

    A rebuilt image has another name, from which Snakemake sees that steps must run again. It need not exist.
    """
    return (site.image or IMAGES / f"unlearn-{'gpu' if gpus else 'cpu'}.sif").absolute().resolve()


def image_sha256(image: Path) -> str | None:
    """The digest that `containers/build` wrote beside the image; ``None`` for an image from elsewhere."""
    try:
        return json.loads(image.with_suffix(".json").read_text(encoding="utf-8"))["sha256"]
    except FileNotFoundError:
        return None
