"""``unlearn sign``: signatures of an experiment's evidence and of its unlearned checkpoints, with one's own key."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from pathlib import Path

from pipeline.commands.signatures import differing, library, signature, signed_folders
from pipeline.config.located_yaml import ConfigError
from pipeline.data.errors import DataError, printable

PASSWORD = "UNLEARN_KEY_PASSWORD"  # variable of the environment

USAGE = """
openssl ecparam -name prime256v1 -genkey -noout -out key.pem        a key, once
openssl ec -in key.pem -pubout -out key.pub                         its public half, for those who verify
unlearn sign results/forget-forget --key key.pem
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments to its parser."""
    add = parser.add_argument
    add("results", type=Path, metavar="FOLDER", help="an experiment's folder of results, with its report")
    about = f"PEM file of an elliptic-curve key; where it has a password, {PASSWORD} of the environment holds it"
    add("--key", type=Path, required=True, metavar="FILE", help=about)


def main(given: argparse.Namespace) -> int:
    """Sign report and checkpoints; returns the exit status: 0, or 2 where that cannot be done."""
    try:
        folders, signing = signed_folders(given.results), library("signing")
        if not given.key.is_file():
            make = f"openssl ecparam -name prime256v1 -genkey -noout -out {shlex.quote(str(given.key))}"
            raise ConfigError([f"--key: {given.key} is missing; this makes one: {make}"])
        if wrong := differing(given.results):
            raise ConfigError([*wrong, "nothing was signed: run the experiment's report again"])
        try:
            password = os.environ.get(PASSWORD)
            config = signing.Config().use_elliptic_key_signer(private_key=given.key, password=password)
            # Snakemake's own file, which no copy that is handed on need have.
            whole = (
                library("hashing").Config().set_ignored_paths(paths=[".snakemake_timestamp"], ignore_git_paths=False)
            )
            config.set_hashing_config(whole)
        except (TypeError, ValueError) as error:
            raise ConfigError([f"--key: {given.key}: {error}"]) from None
    except (ConfigError, DataError, OSError) as error:
        print(printable(str(error)), file=sys.stderr)
        return 2
    for name, folder in folders.items():
        file = signature(given.results, name)
        file.parent.mkdir(exist_ok=True)
        partial = file.with_name(f".{file.name}.partial")
        config.sign(folder, partial)
        os.replace(partial, file)
        print(f"{file}: of {folder}")
    return 0
