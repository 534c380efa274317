"""The tables of docs/scaling.md, printed by ``unlearn plan``: ``python -m tests.support.scaling_page --write``.

Below each command of the page stands what it prints, of steps only those of one method and of the target. Those of
``unlearn simulate``, which take minutes, are written by ``--write-simulated``.
"""

from __future__ import annotations

import contextlib
import io
import re
import shlex
import sys
from pathlib import Path

from pipeline.__main__ import main

PAGE = Path(__file__).resolve().parents[2] / "docs" / "scaling.md"
BLOCK = re.compile(r"^    (unlearn plan [^\n]*)\n\n```text\n(.*?)```\n", re.MULTILINE | re.DOTALL)
SIMULATED = re.compile(BLOCK.pattern.replace("plan", "simulate"), BLOCK.flags)
SHOWN = ("step", "models/target", "unlearned/graddiff/", "unlearned/blur-npo/", "evaluation/target/")


def output(command: str) -> str:
    """All that a command prints."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        main(shlex.split(command)[1:])
    return out.getvalue()


def printed(command: str) -> str:
    """What a plan prints: the heads, some steps, the sum and the layout."""
    steps, rest = output(command).split("\n\n", 1)
    chosen = [line for line in steps.splitlines() if line.startswith(SHOWN)]
    return "\n".join([*chosen, *(line for line in rest.splitlines() if line.startswith(("together", "layout")))]) + "\n"


def commands() -> dict[str, str]:
    """The page's commands, each with what stands below it."""
    return dict(BLOCK.findall(PAGE.read_text(encoding="utf-8")))


def simulated() -> str:
    """The page with what its simulations print now."""
    text = PAGE.read_text(encoding="utf-8")
    return SIMULATED.sub(lambda found: f"    {found[1]}\n\n```text\n{output(found[1]).strip()}\n```\n", text)


def written() -> str:
    """The page with what its commands print now."""
    text = PAGE.read_text(encoding="utf-8")
    return BLOCK.sub(lambda found: f"    {found[1]}\n\n```text\n{printed(found[1])}```\n", text)


if __name__ == "__main__":
    if sys.argv[1:] == ["--write-simulated"]:
        PAGE.write_text(simulated(), encoding="utf-8")
    elif sys.argv[1:] == ["--write"]:
        PAGE.write_text(written(), encoding="utf-8")
    elif written() != PAGE.read_text(encoding="utf-8"):
        sys.exit(f"{PAGE} is out of date: python -m tests.support.scaling_page --write")
