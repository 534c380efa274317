"""``unlearn merge``: a base model and a folder of LoRA adapters, as ``peft`` writes it, become one checkpoint.

The merged folder is a model as any other: a target, a model to be evaluated, one that is asked to forget more.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from pipeline.hub import model_folder

USAGE = """
unlearn merge --model base --adapter adapter --out merged
unlearn init --model merged --forget forget.jsonl --retain retain.jsonl
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments to its parser."""
    add = parser.add_argument
    add("--model", type=Path, required=True, metavar="FOLDER", help="the Hugging Face folder of the base model")
    about = "a folder with adapter_config.json and adapter_model.safetensors"
    add("--adapter", type=Path, required=True, metavar="FOLDER", help=about)
    add("--out", type=Path, required=True, metavar="FOLDER", help="the merged model's folder, which must be new")


def main(given: argparse.Namespace) -> int:
    """Merge; returns the exit status: 0, or 2 where that cannot be done."""
    fault = model_folder.fault(given.model)
    if fault:
        return _refused(f"--model: {given.model} {fault}")
    if given.out.exists():
        return _refused(f"--out: {given.out} exists; allowed: a new folder")

    from megatron_ext.checkpoint import adapter_folder  # imports torch

    try:
        adapter_folder.merge(given.model, given.adapter, given.out)
    except (OSError, ValueError) as error:
        return _refused(f"--adapter: {error}")
    print(f"{given.out}: {given.model} with {given.adapter}")
    return 0


def _refused(message: str) -> int:
    print(message, file=sys.stderr)
    return 2
