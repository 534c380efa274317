"""Starting a step: its specification on disk, its threads, its ranks, its exit status and its provenance."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from megatron_ext.specs import Layout, ReferenceSpec, Runtime, read
from pipeline import launch, provenance
from pipeline.plan import canonical
from pipeline.specs import BpeTokenizer, PrepareSpec, SyntheticSource

ROOT = Path(__file__).parents[2]


@pytest.fixture
def prepare(tmp_path: Path) -> PrepareSpec:
    return PrepareSpec(
        source=SyntheticSource(authors=10, questions_per_author=2, background_authors=1, seed=3),
        tokenizer=BpeTokenizer(vocab_size=300),
        max_length=256,
        output=tmp_path / "data",
    )


def start(*arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pipeline.launch", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, **options)


def test_a_step_leaves_its_specification_and_provenance(prepare: PrepareSpec) -> None:
    path = prepare.output / "spec.yaml"
    done = start(str(path), canonical(prepare))
    assert done.returncode == 0, done.stderr
    assert PrepareSpec.model_validate(yaml.safe_load(path.read_text())) == prepare
    found = json.loads((prepare.output / "provenance.json").read_text())
    assert found["step"] == "prepare"
    assert found["spec"] == prepare.model_dump(mode="json")
    assert found["spec_sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert found["data"][str(prepare.output / "manifest.json")]["train"]["full"]["sha256"]
    assert found["summary"]["work_seconds"] > 0
    assert found["started"] <= found["ended"]
    assert not list(prepare.output.glob(".*"))


def test_a_step_runs_again_from_its_specification_alone(prepare: PrepareSpec, tmp_path: Path) -> None:
    path = tmp_path / "spec.yaml"
    path.write_text(launch.as_yaml(prepare))
    before = path.read_bytes()
    assert start(str(path)).returncode == 0
    assert path.read_bytes() == before


def test_standard_input(prepare: PrepareSpec, tmp_path: Path) -> None:
    done = start(str(tmp_path / "spec.yaml"), "-", input=canonical(prepare))
    assert done.returncode == 0, done.stderr
    assert (prepare.output / "manifest.json").is_file()


@pytest.mark.parametrize("text", ["{", '{"step": "nothing"}', '{"step": "prepare", "colour": "red"}'])
def test_a_wrong_specification_is_refused_and_not_written(tmp_path: Path, text: str) -> None:
    done = start(str(tmp_path / "spec.yaml"), text)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr and "spec.yaml" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_failing_step_fails_and_leaves_no_provenance(prepare: PrepareSpec) -> None:
    spec = prepare.model_copy(update={"max_length": 8})  # every row is longer
    done = start(str(prepare.output / "spec.yaml"), canonical(spec))
    assert done.returncode == 1
    assert not (prepare.output / "provenance.json").exists()


def reference(folder: Path, ranks: int = 1, threads: int = 1) -> ReferenceSpec:
    runtime = Runtime(layout=Layout(tensor=ranks), device="cpu", threads=threads)
    return ReferenceSpec(checkpoint=folder / "none", data=folder / "none.npz", runtime=runtime, output=folder)


@pytest.mark.parametrize(("ranks", "given", "each"), [(1, 4, 4), (2, 4, 2), (4, 2, 1), (1, None, 3)])
def test_threads_are_shared_by_the_ranks(tmp_path: Path, ranks: int, given: int | None, each: int) -> None:
    path = tmp_path / "spec.yaml"
    spec = launch._specification(path, canonical(reference(tmp_path, ranks, threads=3)), given)
    assert spec.runtime.threads == each
    assert yaml.safe_load(path.read_text())["runtime"]["threads"] == each


def test_a_number_that_was_edited_by_hand_is_a_number(tmp_path: Path) -> None:
    path = tmp_path / "spec.yaml"
    text = launch.as_yaml(reference(tmp_path, threads=3))
    path.write_text(text.replace("timeout_seconds: 600.0", "timeout_seconds: 6e2"))
    assert path.read_text() != text
    assert launch._specification(path, None, None).runtime.timeout_seconds == 600.0
    assert read(path, ReferenceSpec).runtime.timeout_seconds == 600.0


@pytest.mark.parametrize(("text", "expected"), [("step: reference", "checkpoint\n  Field required"), ("a: [", "while")])
def test_a_program_names_what_is_wrong_with_its_specification(tmp_path: Path, text: str, expected: str) -> None:
    path = tmp_path / "spec.yaml"
    path.write_text(text)
    with pytest.raises(SystemExit) as error:
        read(path, ReferenceSpec)
    assert str(error.value).startswith(f"{path}: ") and expected in str(error.value)


def test_the_environment_follows_the_specification(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "PYTHONHASHSEED"):
        monkeypatch.setenv(name, "99")
    launch.environment(reference(tmp_path, threads=3))
    assert (os.environ["OMP_NUM_THREADS"], os.environ["MKL_NUM_THREADS"]) == ("3", "3")
    assert os.environ["PYTHONHASHSEED"] == "0"


PROGRAM = """
import os, sys, time
from pathlib import Path

folder = Path(sys.argv[1])
rank, size = os.environ["RANK"], os.environ["WORLD_SIZE"]
(folder / f"rank-{rank}").write_text(f"{size} {os.environ['MASTER_ADDR']}")
if (folder / "fail").exists() and rank == "1":
    sys.exit(5)
if (folder / "wait").exists():
    time.sleep(60)
"""


@pytest.fixture
def torchrun(tmp_path: Path) -> list[str]:
    """A command that runs PROGRAM on two ranks by the launcher's own function."""
    (tmp_path / "ranked.py").write_text(PROGRAM)
    call = f"import sys; from pipeline import launch; sys.exit(launch._torchrun('ranked', {str(tmp_path)!r}, 2))"
    return [sys.executable, "-c", call]


def environment(tmp_path: Path) -> dict[str, str]:
    return os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)]), "OMP_NUM_THREADS": "1"}


@pytest.mark.slow
def test_ranks_run_and_their_failure_is_the_launchers(torchrun: list[str], tmp_path: Path) -> None:
    done = subprocess.run(torchrun, env=environment(tmp_path), capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    for rank in range(2):
        size, address = (tmp_path / f"rank-{rank}").read_text().split()
        assert size == "2" and address
    (tmp_path / "fail").touch()
    (tmp_path / "wait").touch()  # rank 0 must not be waited for
    began = time.monotonic()
    done = subprocess.run(torchrun, env=environment(tmp_path), capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    assert "exitcode  : 5" in done.stderr
    assert time.monotonic() - began < 55


def test_sigterm_reaches_the_ranks(torchrun: list[str], tmp_path: Path) -> None:
    (tmp_path / "wait").touch()
    with subprocess.Popen(torchrun, env=environment(tmp_path), stderr=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + 60
        while not all((tmp_path / f"rank-{rank}").exists() for rank in range(2)):
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.1)
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=50) != 0


def test_provenance_names_the_packages_of_this_project(monkeypatch: pytest.MonkeyPatch) -> None:
    requirements = ["numpy>=2", "pydantic<3,>=2.10", 'pytest>=8; extra == "dev"', "nothing-like-this"]
    requirements += ['ruff[all]>=0.12; extra == "gpu"', 'transformer-engine-of-none; extra == "gpu"']
    monkeypatch.setattr(provenance.importlib.metadata, "requires", lambda _: requirements)
    assert set(provenance._packages()) == {"numpy", "pydantic", "ruff"}
