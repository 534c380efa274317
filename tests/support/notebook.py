"""Runs a notebook's code, cell by cell in one namespace, as Jupyter does: ``python -m tests.support.notebook FILE``.

No kernel is started, and nothing is installed for it: these notebooks have plain Python in their cells. nbformat comes
with Snakemake.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import nbformat


def execute(path: Path) -> dict[str, Any]:
    """Check a notebook's format and run its cells; returns the names that they have made."""
    notebook = nbformat.read(path, as_version=4)  # type: ignore[no-untyped-call]  # nbformat has few annotations
    nbformat.validate(notebook)
    names: dict[str, Any] = {"__name__": "__main__"}
    for cell in notebook.cells:
        if cell.cell_type == "code":
            exec(compile(cell.source, f"{path.name}, {cell.id}", "exec"), names)
    return names


if __name__ == "__main__":
    execute(Path(sys.argv[1]))
