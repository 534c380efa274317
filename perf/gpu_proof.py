"""One command that proves this project on a GPU: that it computes what the CPU does, then how fast it is.

    python -m perf.gpu_proof --prepare              # before, on any machine: what the CPU computes (minutes)
    python -m perf.gpu_proof                        # on the machine with the GPU: at most 540 seconds

Both write into ``results/gpu-proof``, and every result is a JSON line in ``proof.jsonl`` there. The tests are those of
``tests/gpu``, the speed is that of ``perf.gpu``. Each part has its own end, and what is left of the time is the
second's.

A machine without a network and without megatron-core gets it as wheels: ``--prepare --wheels 3.12`` keeps those that a
Python 3.12 with torch, transformers and pytest needs besides, and the proof installs them into a folder of its own.
``--device cpu --tiny`` runs all of it without a GPU, at shapes that mean nothing.

This module needs nothing but Python.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "results" / "gpu-proof"
LIMIT = 540.0
CORRECTNESS, SPEED = 170.0, 300.0  # seconds, of the limit
# What a machine with torch, transformers and pytest lacks.
WHEELS = (
    *("megatron-core", "pydantic", "pydantic-core", "annotated-types", "typing-extensions", "typing-inspection"),
    *("psutil", "pytest-timeout", "pytest-xdist", "execnet"),
)
PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64", "manylinux1_x86_64")


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m perf.gpu_proof", description=__doc__.splitlines()[0])
    parser.add_argument("--prepare", action="store_true", help="compute on the CPU what the GPU is compared with")
    parser.add_argument("--wheels", metavar="VERSION", help="with --prepare: wheels for that Python, too")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--tiny", action="store_true", help="few cases and shapes that mean nothing")
    parser.add_argument("--folder", type=Path, default=FOLDER, help="default: results/gpu-proof")
    parser.add_argument("--out", type=Path, help="the folder of proof.jsonl; default: --folder")
    given = parser.parse_args(argv)
    if given.wheels and not given.prepare:
        parser.error("--wheels: goes with --prepare")
    folder = given.folder.absolute()
    if given.prepare:
        return prepare(folder, given.tiny, given.wheels)
    return prove(folder, (given.out or folder).absolute(), given.device, given.tiny)


def prepare(folder: Path, tiny: bool, version: str | None) -> int:
    """Make the references and, for a Python ``version``, download wheels; the exit status."""
    calls = [[sys.executable, "-m", "tests.gpu.cases", str(folder / "references"), *(["--tiny"] if tiny else [])]]
    if version is not None:
        calls.append(download(folder / "wheels", version))
    # A program that a signal ended has a negative status.
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    return int(any([subprocess.run(call, cwd=ROOT, env=environment).returncode for call in calls]))


def download(folder: Path, version: str) -> list[str]:
    """The call of pip that brings the wheels, in the versions of ``constraints.txt``, for a Python ``version``."""
    lines = (ROOT / "constraints.txt").read_text().split()
    pins = {name.replace("_", "-"): pin for name, _, pin in (line.partition("==") for line in lines) if pin}
    kind = ["--no-deps", "--only-binary=:all:", f"--python-version={version}", "--implementation=cp"]
    kind += [f"--platform={platform}" for platform in PLATFORMS]
    wanted = [f"{name}=={pins[name]}" for name in WHEELS]
    return [sys.executable, "-m", "pip", "download", "--quiet", *kind, f"--dest={folder}", *wanted]


def prove(folder: Path, out: Path, device: str, tiny: bool) -> int:
    """Tests, then speed; the exit status is 0 where all that was to be run was, and passed."""
    end = time.monotonic() + LIMIT
    results = out / "proof.jsonl"
    environment = {
        **os.environ,
        "UNLEARN_GPU_DEVICE": device,
        "UNLEARN_GPU_REFERENCES": str(folder / "references"),
        "UNLEARN_GPU_RESULTS": str(results),
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "2"),
    }
    environment.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")
    with tempfile.TemporaryDirectory() as site:
        wheels = sorted(map(str, (folder / "wheels").glob("*.whl")))
        if wheels:
            quiet = ["--quiet", "--no-index", "--no-deps", "--no-compile", "--no-cache-dir"]
            pip = [sys.executable, "-m", "pip", "install", *quiet, f"--target={site}", *wheels]
            if subprocess.run(pip).returncode:
                python = ".".join(map(str, sys.version_info[:2]))
                print(f"{folder / 'wheels'}: pip cannot install these for Python {python}: its own message is above")
                return 1
            environment["PYTHONPATH"] = os.pathsep.join(filter(None, [site, os.environ.get("PYTHONPATH")]))
        out.mkdir(parents=True, exist_ok=True)
        results.write_text("")
        tests = ["pytest", "tests/gpu", "-m", "gpu", "-p", "no:cacheprovider", "-n0", "-q", "-rs"]
        passed = part("correctness", tests, min(CORRECTNESS, end - time.monotonic()), environment, results)
        seconds = min(SPEED, end - time.monotonic() - 20)
        bench = ["perf.gpu", f"--device={device}", f"--out={results}", f"--deadline={seconds:.0f}"]
        measured = part("speed", [*bench, *(["--tiny"] if tiny else [])], seconds + 15, environment, results)
    print(summary(results))
    return 0 if passed and measured else 1


def part(name: str, module: Sequence[str], seconds: float, environment: dict[str, str], results: Path) -> bool:
    """Run a module for so many seconds at most; whether it succeeded. Its end is a line of the results too."""
    start = time.monotonic()
    line = [sys.executable, "-m", *module]
    with subprocess.Popen(line, cwd=ROOT, env=environment, start_new_session=True) as process:
        try:
            status: int | str = process.wait(seconds)
        except subprocess.TimeoutExpired:
            status = f"cut short after {seconds:.0f} s"
        finally:
            if process.poll() is None:  # with the ranks that a test has started, which would keep the GPUs busy
                os.killpg(process.pid, signal.SIGKILL)
    with results.open("a") as file:
        row = {"section": "end", "of": name, "status": status, "seconds": round(time.monotonic() - start, 1)}
        file.write(json.dumps(row) + "\n")
    return status == 0


def summary(results: Path) -> str:
    """What failed, and how many passed."""
    rows = [json.loads(line) for line in results.read_text().splitlines()]
    tests = [row for row in rows if row["section"] == "correctness"]
    counts = {kind: sum(row["outcome"] == kind for row in tests) for kind in ("passed", "failed", "skipped")}
    failed = [row for row in tests if row["outcome"] == "failed"]
    lines = [f"{row['test']}: {' '.join(row['error'].split())[-200:]}" for row in failed]
    lines += [f"speed: {row['error']}" for row in rows if row["section"] == "failed"]
    lines += [f"speed: no time was left for {row['left_out']}" for row in rows if row["section"] == "deadline"]
    lines += [f"{row['of']}: {row['status']}" for row in rows if row["section"] == "end" and row["status"] != 0]
    return "\n".join([*lines, f"{counts}; results: {results}"])


if __name__ == "__main__":
    sys.exit(main())
