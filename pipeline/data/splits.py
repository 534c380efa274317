"""TOFU's splits (arXiv 2401.06121) by TOFU's names, and the files that hold them."""

from __future__ import annotations

from pathlib import Path

RETAIN_SPLITS = {"forget01": "retain99", "forget05": "retain95", "forget10": "retain90"}
SUFFIXES = (".json", ".jsonl")


def split_names(forget_split: str) -> list[str]:
    """The splits that preparing ``forget_split`` reads from files: trained ones first, then those that are scored."""
    return [
        "full",
        forget_split,
        RETAIN_SPLITS[forget_split],
        f"{forget_split}_perturbed",
        "retain_perturbed",
        "real_authors_perturbed",
        "world_facts_perturbed",
    ]


def split_file(folder: Path, split: str) -> Path | None:
    """The file of a split in a folder, or ``None``."""
    return next((path for path in (folder / f"{split}{suffix}" for suffix in SUFFIXES) if path.is_file()), None)
