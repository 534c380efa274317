"""``unlearn verify``: whether evidence and unlearned checkpoints are, to the byte, those that were signed."""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

from pipeline.commands.signatures import differing, library, signature, signed_folders
from pipeline.config.located_yaml import ConfigError
from pipeline.data.errors import DataError, printable

USAGE = """
unlearn verify results/forget-forget --key key.pub
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments to its parser."""
    add = parser.add_argument
    add("results", type=Path, metavar="FOLDER", help="an experiment's folder of results, with its signatures")
    add("--key", type=Path, required=True, metavar="FILE", help="PEM file of the signer's public key")


def main(given: argparse.Namespace) -> int:
    """Check every signature.

    Returns:
        The exit status: 0, 1 where a file is not what was signed, 2 for what cannot be checked.
    """
    try:
        folders, verifying = signed_folders(given.results), library("verifying")
        if not given.key.is_file():
            raise ConfigError([f"--key: {given.key} is missing: it is the public key of the one that signed"])
        try:
            config = verifying.Config().use_elliptic_key_verifier(public_key=given.key)
        except (TypeError, ValueError) as error:
            raise ConfigError([f"--key: {given.key}: {error}"]) from None
        wrong = differing(given.results)
    except (ConfigError, DataError, OSError) as error:  # a file that may not be read is none that has changed
        print(printable(str(error)), file=sys.stderr)
        return 2
    for name, folder in folders.items():
        file = signature(given.results, name)
        try:
            if not file.is_file():
                raise ValueError(f"{file} is missing")
            config.verify(folder, file)
        except Exception as error:  # the library's: of its own, of cryptography, of JSON
            wrong.append(f"{folder}: {_told(error)}")
        else:
            print(f"{folder}: as signed")
    print("\n".join(wrong), file=sys.stderr, end="\n" if wrong else "")
    return 1 if wrong else 0


def _told(error: Exception) -> str:
    """What the library says, without the bytes of digests."""
    text = str(error).strip() or type(error).__name__
    changed = re.findall(r"Hash mismatch for \\?'([^'\\]*)", text)
    others = re.findall(r"((?:Extra|Missing) files)(?: found)? in model [^:]*: ([^'\"\\]*)", text)
    found = [f"changed since it was signed: {', '.join(changed)}"] * bool(changed)
    return "; ".join([*found, *(f"{kind.lower()}: {names}" for kind, names in others)]) or text
