"""The proof on a GPU, dry: all of it runs here, on the CPU and at a shape that means nothing, so that it cannot rot."""

from __future__ import annotations

import importlib.metadata
import json
import math
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from perf import gpu, gpu_proof
from tests.gpu import cases
from tests.gpu.test_equality import far, largest

# A program with a program of its own.
STARTS = """
import os, pathlib, subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
pathlib.Path({said!r}).write_text(str(child.pid))
time.sleep(60)
"""
# Begins every Python: the packages are those of a folder, whatever else the environment has.
ONLY = "import sys\nsys.path[:] = [path for path in sys.path if not path.endswith('site-packages')] + [{folder!r}]\n"


@pytest.fixture
def bare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Programs find the packages of a machine with torch, transformers and pytest, and the wheels that are carried."""
    found: dict[str, Any] = {}
    asked = [*gpu_proof.WHEELS, "torch", "transformers", "pytest", "setuptools"]
    while asked:
        name = asked.pop()
        if name in found:
            continue
        try:
            found[name] = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:  # for another system, or Python
            continue
        if name not in gpu_proof.WHEELS:
            asked += [re.split(r"[^\w.-]", line)[0] for line in found[name].requires or [] if "extra ==" not in line]
    folder = tmp_path / "packages"
    folder.mkdir()
    for distribution in found.values():
        for top in {file.parts[0] for file in distribution.files} - {"..", "__pycache__"}:
            if not (folder / top).exists():
                (folder / top).symlink_to(distribution.locate_file(top))
    (tmp_path / "first").mkdir()
    (tmp_path / "first" / "sitecustomize.py").write_text(ONLY.format(folder=str(folder)))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "first"))


@pytest.mark.slow
@pytest.mark.usefixtures("bare")
def test_its_tests_need_no_other_package(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """They are found, with the project's own fixtures, where nothing but the few wheels was added."""
    words = ["pytest", "tests/gpu", "-m", "gpu", "-n0", "-q", "--collect-only", "-p", "no:cacheprovider"]
    found = gpu_proof.part("correctness", words, 120.0, dict(os.environ), tmp_path / "proof.jsonl")
    assert found, capfd.readouterr()
    program = (
        "import importlib.util; assert not importlib.util.find_spec('snakemake'); import megatron_ext.summary as s"
    )
    (tmp_path / "program.py").write_text(f"{program}; s.Clock()\n")
    environment = {**os.environ, "PYTHONPATH": f"{os.environ['PYTHONPATH']}:{tmp_path}:{gpu_proof.ROOT}"}
    assert gpu_proof.part("clock", ["program"], 60.0, environment, tmp_path / "proof.jsonl"), capfd.readouterr().err


@pytest.mark.long
@pytest.mark.usefixtures("bare")
def test_the_proof_runs(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Its tests pass where GPU and CPU are one, each section of the benchmark gives its results."""
    assert gpu_proof.main(["--prepare", "--tiny", "--folder", str(tmp_path)]) == 0
    status = gpu_proof.main(["--device", "cpu", "--tiny", "--folder", str(tmp_path)])
    assert status == 0, capfd.readouterr().out[-4000:]
    rows = [json.loads(line) for line in (tmp_path / "proof.jsonl").read_text().splitlines()]
    tests = {row["test"]: row["outcome"] for row in rows if row["section"] == "correctness"}
    assert set(tests.values()) == {"passed", "skipped"}
    skipped = sorted(name.partition("[")[0] for name, outcome in tests.items() if outcome == "skipped")
    assert set(skipped) == {"test_transformer_engine_computes_the_same", "test_two_gpus_are_one"}
    assert len(tests) - len(skipped) >= 12
    sections = [row["section"] for row in rows if row["section"] != "correctness"]
    measured = ["machine", "attention", "attention", "rules", "rules", "rules", "vectors", "vectors"]
    assert sections == ["end", *measured, "transformers", "generation", "rules", "end"]
    assert all(row["seconds"] > 0 for row in rows if row["section"] in ("rules", "transformers", "vectors"))


def test_a_part_that_takes_too_long_is_cut_short_and_said(tmp_path: Path) -> None:
    results = tmp_path / "proof.jsonl"
    assert not gpu_proof.part("speed", ["timeit", "-n1", "import time; time.sleep(30)"], 0.5, {}, results)
    assert gpu_proof.part("correctness", ["this"], 30.0, {}, results)
    ends = [json.loads(line) for line in results.read_text().splitlines()]
    assert [(row["of"], row["status"]) for row in ends] == [("speed", "cut short after 0 s"), ("correctness", 0)]
    assert "speed: cut short" in gpu_proof.summary(results)


@pytest.mark.slow
def test_what_a_part_started_ends_with_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ranks of a test would go on beside the benchmark, on its GPU."""
    said = tmp_path / "said"
    said.touch()
    (tmp_path / "starts.py").write_text(STARTS.format(said=str(said)))

    class Started(subprocess.Popen[bytes]):
        def wait(self, timeout: float | None = None) -> int:
            while timeout is not None and not said.read_text():
                time.sleep(0.05)
            return super().wait(timeout)

    monkeypatch.setattr(gpu_proof.subprocess, "Popen", Started)
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    assert not gpu_proof.part("correctness", ["starts"], 0.1, environment, tmp_path / "proof.jsonl")
    pid, end = int(said.read_text()), time.monotonic() + 5.0
    while (running := psutil.pid_exists(pid) and psutil.Process(pid).status() != "zombie") and time.monotonic() < end:
        time.sleep(0.05)
    assert not running


@pytest.mark.slow
def test_what_there_was_no_time_for_is_said_and_no_success(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whole sections, and rules in the middle of one."""
    results = tmp_path / "proof.jsonl"
    words = ["--device", "cpu", "--tiny", "--deadline", "0", "--out", str(results)]
    assert gpu.main(words) == 1
    assert "speed: no time was left for the last 5 of 5 sections\n" in gpu_proof.summary(results)

    def one(bench: gpu.Bench, tiny: bool) -> list[Any]:
        def section() -> None:
            bench._end -= 1000.0
            gpu.rules(bench, "tiny", 2, "adamw", list(gpu.RULES), steps=1, batch=4)

        return [section]

    monkeypatch.setattr(gpu, "plan", one)
    assert gpu.main([*words[:-3], "1000", "--out", str(results)]) == 1
    assert "no time was left for graddiff, npo, blur-npo on tiny, micro-batches of 2\n" in gpu_proof.summary(results)


@pytest.mark.parametrize(
    ("name", "rate"),
    [
        *(("NVIDIA H100 80GB HBM3", 989e12), ("NVIDIA H100 PCIe", 756e12), ("NVIDIA H100 NVL", 835e12)),
        *(("NVIDIA H200", 989e12), ("NVIDIA H200 NVL", 835e12), ("NVIDIA A100-SXM4-80GB", 312e12)),
        *(("NVIDIA GH200 480GB", 989e12), ("NVIDIA L4", None), (None, None)),
    ],
)
def test_the_peak_rate_is_that_of_a_gpus_own_form(name: str | None, rate: float | None) -> None:
    assert gpu.peak_flops(name) == rate


def test_no_number_is_no_agreement() -> None:
    """A GPU's NaN, of which `max` would say nothing."""
    assert far([{"loss": math.nan}], [{"loss": 1.0}]) == {"loss": math.inf}
    assert far([{"loss": 1.5}, {"loss": 2.0}], [{"loss": 1.0}, {"loss": 2.0}]) == {"loss": 0.5}
    assert largest([0.1, math.nan, 0.2]) == math.inf


def test_references_are_known_by_all_that_makes_them() -> None:
    """Those of methods, models or code that have changed since are made anew."""
    made_by = ("tests.megatron_ext.losses.test_methods", "tests.support.tiny", "tests.support.method_world")
    made_by += ("tests.support.inference_cases", "megatron_ext.specs", "tests.gpu.cases")
    files = {Path(str(sys.modules[name].__file__)) for name in made_by if name in sys.modules}
    assert len(files) >= 5 and files <= set(cases.sources())


def test_wheels_for_another_python_are_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """And the results of an earlier proof stay."""
    (tmp_path / "wheels").mkdir()
    (tmp_path / "wheels" / "a-1-cp32-none-any.whl").touch()
    (tmp_path / "proof.jsonl").write_text("earlier\n")
    monkeypatch.setattr(gpu_proof.subprocess, "run", lambda *_, **__: SimpleNamespace(returncode=1))
    assert gpu_proof.main(["--folder", str(tmp_path)]) == 1
    assert f"{tmp_path / 'wheels'}: pip cannot install" in capsys.readouterr().out
    assert (tmp_path / "proof.jsonl").read_text() == "earlier\n"


def test_the_wheels_are_those_of_this_installation(tmp_path: Path) -> None:
    """Each that the proof carries is pinned, in the version that was tested here."""
    from importlib.metadata import version

    call = gpu_proof.download(tmp_path, "3.12")
    assert {f"{name}=={version(name)}" for name in gpu_proof.WHEELS} <= set(call)


def test_references_whose_making_was_killed_are_no_success(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only this has a negative status, beside one of 0."""
    statuses = iter([-9, 0])
    monkeypatch.setattr(gpu_proof.subprocess, "run", lambda *_, **__: SimpleNamespace(returncode=next(statuses)))
    assert gpu_proof.prepare(tmp_path, tiny=True, version="3.12") == 1
