"""Start several ranks on this machine and run one function on all of them, for tests of parallel code."""

from __future__ import annotations

import importlib.util
import inspect
import os
import pickle
import random
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
GRACE_SECONDS = 5.0


def run_ranks(function: Callable[..., Any], ranks: int, *args: Any, timeout: float = 120.0) -> list[Any]:
    """``function(*args)`` on each of ``ranks`` new processes, with torchrun's environment; the results, by rank.

    ``function`` is at the top level of a module, ``args`` and the results can be pickled. Start-up takes seconds, so
    give one call much to check. Raises ``RuntimeError`` with the output of the ranks that failed, soon after the first
    does, and ``TimeoutError`` after ``timeout`` seconds; no process is left behind.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "call").write_bytes(pickle.dumps((inspect.getfile(function), function.__name__, args)))
        (port,) = free_ports(1)
        outputs = [(folder / f"output-{rank}").open("w+") for rank in range(ranks)]
        processes = [
            subprocess.Popen(
                [sys.executable, __file__, str(folder)],
                cwd=ROOT,
                env=_environment(rank, ranks, port),
                stdout=outputs[rank],
                stderr=subprocess.STDOUT,
            )
            for rank in range(ranks)
        ]
        try:
            codes = _wait(processes, timeout)
        finally:
            for process in processes:
                process.kill()
                process.wait()
            for output in outputs:
                output.close()
        logs = [(folder / f"output-{rank}").read_text() for rank in range(ranks)]
        failed = [rank for rank, code in enumerate(codes) if code]
        if failed:
            raise RuntimeError("\n".join(f"rank {rank} of {ranks} failed:\n{logs[rank]}" for rank in failed))
        if None in codes:
            raise TimeoutError(f"after {timeout} s not all of {ranks} ranks had ended:\n" + "\n".join(logs))
        return [pickle.loads((folder / f"result-{rank}").read_bytes()) for rank in range(ranks)]


def _wait(processes: list[subprocess.Popen[Any]], timeout: float) -> list[int | None]:
    """Exit codes when all have ended or time is up; after a failure, the others have a moment to fail too."""
    end, grace = time.monotonic() + timeout, None
    codes = [process.poll() for process in processes]
    while None in codes and time.monotonic() < min(end, grace or end):
        if any(codes) and grace is None:
            grace = time.monotonic() + GRACE_SECONDS
        time.sleep(0.05)
        codes = [process.poll() for process in processes]
    return codes


def _environment(rank: int, ranks: int, port: int) -> dict[str, str]:
    return {
        **os.environ,
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(ranks),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
    }


def free_ports(count: int) -> list[int]:
    """Ports of this machine that nothing listens on, below those that the kernel gives to connections meanwhile."""
    ports: list[int] = []
    for port in random.SystemRandom().sample(range(20000, 32000), 1000):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) != 0:
                ports.append(port)
        if len(ports) == count:
            return ports
    raise RuntimeError(f"fewer than {count} ports are free")


def _work(folder: Path) -> None:
    file, name, args = pickle.loads((folder / "call").read_bytes())
    spec = importlib.util.spec_from_file_location(Path(file).stem, file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    result = getattr(module, name)(*args)
    (folder / f"result-{os.environ['RANK']}").write_bytes(pickle.dumps(result))


if __name__ == "__main__":
    _work(Path(sys.argv[1]))
