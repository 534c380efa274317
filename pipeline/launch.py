"""Start one step: ``python -m pipeline.launch SPEC.yaml [JSON]``.

With ``JSON`` (or ``-``, for standard input) the specification is checked and written to ``SPEC.yaml`` first. The step's
program then runs in this process or, where its layout has several ranks, in one process a rank under torchrun; its
exit status becomes this program's. At the end ``provenance.json`` is written beside what the step wrote.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType
from typing import Any

import yaml
from pydantic import TypeAdapter, ValidationError

from megatron_ext.files import write_text
from megatron_ext.schema import Strict
from megatron_ext.specs import Loader
from pipeline.sources import program
from pipeline.specs import StepSpec


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m pipeline.launch", description=__doc__.splitlines()[0])
    parser.add_argument("path", type=Path, metavar="SPEC.yaml")
    parser.add_argument("json", nargs="?", help="the specification to write there first; '-' reads standard input")
    parser.add_argument("--threads", type=int, help="CPU threads of all ranks together; default: as specified")
    given = parser.parse_args(argv)
    try:
        spec = _specification(given.path, given.json, given.threads)
    except (OSError, ValidationError, ValueError, yaml.YAMLError) as error:
        print(f"{given.path}: {error}", file=sys.stderr)
        return 2
    started = datetime.now(UTC)
    environment(spec)
    status = _run(spec, given.path)
    if status == 0:
        from pipeline import provenance

        provenance.write(spec, given.path, started)
    return status


def _specification(path: Path, text: str | None, threads: int | None) -> Any:
    """The specification in ``text`` or in ``path``; writes ``path`` where it is given or changed by ``threads``."""
    if text is None:
        values = yaml.load(path.read_text(encoding="utf-8"), Loader)
    else:
        values = json.loads(sys.stdin.read() if text == "-" else text)
    spec = TypeAdapter(StepSpec).validate_python(values)
    if threads is not None and hasattr(spec, "runtime"):
        each = max(1, threads // spec.runtime.layout.ranks)
        spec = spec.model_copy(update={"runtime": spec.runtime.model_copy(update={"threads": each})})
    if text is not None or threads is not None:
        write_text(path, as_yaml(spec))
    return spec


def as_yaml(spec: Strict) -> str:
    return yaml.safe_dump(spec.model_dump(mode="json"), sort_keys=False, allow_unicode=True, width=120)


def environment(spec: Strict) -> None:
    """Set what must be set before numerical libraries are loaded: thread counts, and child processes' hash seed."""
    runtime = getattr(spec, "runtime", None)
    threads = str(runtime.threads if runtime else 1)
    os.environ |= {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads, "PYTHONHASHSEED": "0"}
    # Threads that spin while they wait make a step three times slower as soon as the machine does anything else.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # A tokenizer's own thread pool would come on top of these; hashing of strings decides no result.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


def _run(spec: Any, path: Path) -> int:
    runtime = getattr(spec, "runtime", None)
    if runtime is None or runtime.layout.ranks == 1:
        # In this process: a child would import everything once more.
        return importlib.import_module(program(spec)).main([str(path)]) or 0
    return _torchrun(program(spec), path, runtime.layout.ranks)


def _torchrun(module: str, path: Path, ranks: int) -> int:
    """Run ``module`` on ``ranks`` processes of this machine; passes SIGTERM and SIGINT on to them."""
    command = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={ranks}", "--nnodes=1"]
    command += ["--rdzv-backend=c10d", "--rdzv-endpoint=127.0.0.1:0", "--local-addr=127.0.0.1"]
    child = subprocess.Popen([*command, "--module", module, str(path)])

    def forward(number: int, _: FrameType | None) -> None:
        child.send_signal(number)

    previous = {number: signal.signal(number, forward) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        status = child.wait()
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
    return status if status >= 0 else 128 - status


if __name__ == "__main__":
    sys.exit(main())
