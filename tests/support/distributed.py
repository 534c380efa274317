"""Start several ranks on this machine and run one function on all of them, for tests of parallel code.

Ranks are forked from a server process that has imported torch and megatron-core once: a rank starts in a tenth of a
second instead of ten.
"""

from __future__ import annotations

import importlib.util
import inspect
import multiprocessing
import os
import pickle
import random
import socket
import sys
import tempfile
import time
from collections.abc import Callable
from functools import cache
from multiprocessing import forkserver
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any
from unittest import mock

from megatron_ext.distributed.rendezvous import STORE

ROOT = Path(__file__).resolve().parents[2]
GRACE_SECONDS = 5.0
# What ranks import anyway. None of it starts a thread, which a fork would lose.
IMPORTED = (
    "megatron_ext.steps.train",
    "megatron_ext.steps.unlearn",
    "megatron_ext.training.unlearning",
    "pipeline.benchmarks.megatron_lm",
    "transformers.models.llama.modeling_llama",
)


def run_ranks(function: Callable[..., Any], ranks: int, *args: Any, timeout: float = 240.0) -> list[Any]:
    """Run ``function(*args)`` on each of ``ranks`` new processes, with the variables that a launcher sets.

    Args:
        function: A function at the top level of a module.
        ranks: How many processes.
        args: What can be pickled.
        timeout: Seconds.

    Returns:
        The results, by rank; they can be pickled.

    Raises:
        RuntimeError: A rank failed; with the output of those that did, soon after the first one.
        TimeoutError: After ``timeout`` seconds some ranks had not ended. No process is left behind.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        call = pickle.dumps((inspect.getfile(function), function.__name__, args))
        processes = [
            start(_work, call, folder / f"result-{rank}", output=folder / f"output-{rank}", environment=environment)
            for rank, environment in enumerate(environments(ranks, folder / "store"))
        ]
        try:
            codes = _wait(processes, timeout)
        finally:
            for process in processes:
                process.kill()
                process.join()
        logs = [(folder / f"output-{rank}").read_text() for rank in range(ranks)]
        failed = [rank for rank, code in enumerate(codes) if code]
        if failed:
            raise RuntimeError("\n".join(f"rank {rank} of {ranks} failed:\n{logs[rank]}" for rank in failed))
        if None in codes:
            raise TimeoutError(f"after {timeout} s not all of {ranks} ranks had ended:\n" + "\n".join(logs))
        return [pickle.loads((folder / f"result-{rank}").read_bytes()) for rank in range(ranks)]


def start(function: Callable[..., None], *args: Any, output: Path, environment: dict[str, str]) -> ForkServerProcess:
    """Start ``function(*args)`` in a new process with that environment, which prints into the file ``output``."""
    return start_apart(function, *args, out=output, err=output, environment=environment)


def start_apart(
    function: Callable[..., None],
    *args: Any,
    out: Path,
    err: Path,
    environment: dict[str, str],
    imported: tuple[str, ...] = IMPORTED,
) -> ForkServerProcess:
    """The same, with a file for each stream, and forked from a process that has imported these modules."""
    out.touch()
    err.touch()
    context = multiprocessing.get_context("forkserver")
    process = context.Process(target=_enter, args=(str(out), str(err), environment, function, args))
    with mock.patch.object(forkserver, "connect_to_new_process", _server(imported).connect_to_new_process):
        process.start()
    return process


def environments(ranks: int, store: Path) -> list[dict[str, str]]:
    """What a launcher sets for each rank of this machine, beside the environment of this process."""
    return [
        {
            **os.environ,
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(ranks),
            STORE: str(store),
            "OMP_NUM_THREADS": "1",
        }
        for rank in range(ranks)
    ]


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


@cache
def _server(imported: tuple[str, ...]) -> forkserver.ForkServer:
    """The process that has imported these modules; it ends with this one."""
    server = forkserver.ForkServer()
    server.set_forkserver_preload(list(imported))
    threads = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = "1"  # read when torch is imported
    server.ensure_running()
    del os.environ["OMP_NUM_THREADS"]
    if threads is not None:
        os.environ["OMP_NUM_THREADS"] = threads
    return server


def _enter(
    out: str, err: str, environment: dict[str, str], function: Callable[..., None], args: tuple[Any, ...]
) -> None:
    for stream, path in ((1, out), (2, err)):
        file = os.open(path, os.O_WRONLY | os.O_APPEND)
        os.dup2(file, stream)
        os.close(file)
    os.environ.clear()
    os.environ.update(environment)
    function(*args)


def _work(call: bytes, result: Path) -> None:
    file, name, args = pickle.loads(call)
    spec = importlib.util.spec_from_file_location(Path(file).stem, file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    result.write_bytes(pickle.dumps(getattr(module, name)(*args)))


def _wait(processes: list[ForkServerProcess], timeout: float) -> list[int | None]:
    """Exit codes when all have ended or time is up; after a failure, the others have a moment to fail too."""
    end, grace = time.monotonic() + timeout, None
    codes = [process.exitcode for process in processes]
    while None in codes and time.monotonic() < min(end, grace or end):
        if any(codes) and grace is None:
            grace = time.monotonic() + GRACE_SECONDS
        time.sleep(0.05)
        codes = [process.exitcode for process in processes]
    return codes
