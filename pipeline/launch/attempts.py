"""Logs of a step's attempts: each start keeps its own, and the newest one also has the step's own log name.

Snakemake deletes a rule's log before it starts the rule again, and with it would go what explains the last failure.
"""

from __future__ import annotations

import os
import re
import sys
from dataclasses import dataclass
from io import TextIOWrapper
from pathlib import Path
from typing import TextIO

from megatron_ext.atomic_files import temporary_name


@dataclass(frozen=True)
class Attempt:
    """The ``number``-th start of a step: its own ``file``, and ``log``, the name that is always the newest one's."""

    number: int
    file: Path
    log: Path

    @property
    def ranks(self) -> Path:
        """The folder where ranks other than the first write what they print."""
        return self.file.with_suffix(".ranks")

    @property
    def earlier(self) -> str:
        """A sentence on the logs of earlier attempts; empty for the first."""
        if self.number == 1:
            return ""
        return f" Logs of earlier attempts: {self.file.with_name(f'{self.log.stem}.*{self.log.suffix}')}"


def begin(log: Path) -> Attempt:
    """Make the log of the next attempt, ``<folder of log>/attempts/<stem>.<n>.log``, and let ``log`` be its name too.

    A hard link, so that the history stays when ``log`` is deleted; a symbolic one where the file system has no others.
    """
    folder = log.parent / "attempts"
    folder.mkdir(parents=True, exist_ok=True)
    pattern = re.compile(re.escape(log.stem) + r"\.(\d+)" + re.escape(log.suffix))
    number = max((int(found[1]) for file in folder.iterdir() if (found := pattern.fullmatch(file.name))), default=0)
    while True:
        number += 1
        file = folder / f"{log.stem}.{number}{log.suffix}"
        try:
            file.open("x").close()
            break
        except FileExistsError:  # by another start of the same step, at the same time
            continue
    temporary = temporary_name(log)
    try:
        os.link(file, temporary)
    except OSError:
        temporary.symlink_to(Path(folder.name, file.name))
    os.replace(temporary, log)
    return Attempt(number, file, log)


def redirect(file: Path) -> TextIO:
    """Send standard output and error of this process and its children to the end of ``file``; returns the old error."""
    sys.stdout.flush()
    sys.stderr.flush()
    before = os.fdopen(os.dup(2), "w")
    target = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    os.dup2(target, 1)
    os.dup2(target, 2)
    os.close(target)
    if isinstance(sys.stdout, TextIOWrapper):  # lines in the order in which they were written, also after a kill
        sys.stdout.reconfigure(line_buffering=True)
    return before


def give_up(terminal: TextIO) -> None:
    """Send standard output and error to ``terminal`` again, with what the log did not take."""
    for number in (1, 2):
        os.dup2(terminal.fileno(), number)
