"""Snakemake as a process of its own, forked from one that has imported it: a dry run takes half the time."""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path
from subprocess import CompletedProcess

from tests.support.distributed import start_apart


def snakemake(
    folder: Path, *arguments: str, environment: dict[str, str] | None = None, timeout: float = 200.0
) -> CompletedProcess[str]:
    """Run ``python -m snakemake`` with these arguments in ``folder``.

    Args:
        folder: Where it runs; packages of the project are imported from here first.
        arguments: Of the command line.
        environment: Of the process; that of this one by default.
        timeout: Seconds.

    Returns:
        Exit status and what it printed.

    Raises:
        TimeoutError: After ``timeout`` seconds it had not ended; it is killed.
    """
    with tempfile.TemporaryDirectory() as name:
        out, err = Path(name) / "out", Path(name) / "err"
        process = start_apart(
            _main,
            str(folder),
            arguments,
            out=out,
            err=err,
            environment=environment or {**os.environ},
            imported=("snakemake.cli",),
        )
        try:
            process.join(timeout)
            if process.exitcode is None:
                raise TimeoutError(f"snakemake had not ended after {timeout} s:\n{out.read_text()}{err.read_text()}")
        finally:
            process.kill()
            process.join()
        return CompletedProcess(["snakemake", *arguments], process.exitcode, out.read_text(), err.read_text())


def _main(folder: str, arguments: tuple[str, ...]) -> None:
    """In the new process: as the interpreter would start, with nothing of the project imported yet."""
    os.chdir(folder)
    for name in [name for name in sys.modules if name.partition(".")[0] in ("pipeline", "megatron_ext")]:
        del sys.modules[name]
    root = str(Path(__file__).resolve().parents[2])
    given = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    sys.path[:] = [folder, *given, *(path for path in sys.path if path != root)]
    sys.argv = ["snakemake", *arguments]
    from snakemake.cli import main

    main(list(arguments))
