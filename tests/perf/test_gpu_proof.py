"""The proof on a GPU, dry: all of it runs here, on the CPU and at a shape that means nothing, so that it cannot rot."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from perf import gpu_proof


@pytest.mark.long
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
