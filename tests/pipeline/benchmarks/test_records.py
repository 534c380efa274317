"""The record of an evaluation, and the examples that it was computed from."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from pipeline.benchmarks.records import (
    EVALUATION,
    EXAMPLES,
    EvaluationRecord,
    Provenance,
    Settings,
    is_complete,
    verified_examples,
)
from pipeline.data.errors import DataError

LINES = '{"set": "forget", "index": 0}\n{"set": "forget", "index": 1}\n'


@pytest.fixture
def record(tmp_path: Path) -> EvaluationRecord:
    """A record in the folder, with its examples."""
    (tmp_path / EXAMPLES).write_text(LINES)
    digest = hashlib.sha256(LINES.encode()).hexdigest()
    made = EvaluationRecord(
        model="npo-seed-0",
        benchmark="mini",
        split="forget10",
        seed=0,
        metrics={"forget_rouge": 0.5, "empty_generations": 0, "forget_quality": None},
        settings=Settings(
            options={"family": "tofu"}, decoding="greedy", precision="fp32", examples={"forget": 2}, data_sha256={}
        ),
        provenance=Provenance(checkpoint="a", data="b", retain_evaluation=None, examples_sha256=digest),
    )
    made.write(tmp_path / EVALUATION)
    return made


def test_the_file_has_these_keys_in_this_order(record: EvaluationRecord, tmp_path: Path) -> None:
    found = json.loads((tmp_path / EVALUATION).read_text())
    assert list(found) == ["schema", "model", "benchmark", "split", "seed", "metrics", "settings", "provenance"]
    assert list(found["settings"]) == ["options", "decoding", "precision", "examples", "data_sha256"]
    assert list(found["provenance"]) == ["checkpoint", "data", "retain_evaluation", "examples_sha256"]
    assert found["schema"] == 2 and repr(found["metrics"]["empty_generations"]) == "0"


def test_examples_are_those_of_the_record(record: EvaluationRecord, tmp_path: Path) -> None:
    assert verified_examples(tmp_path, record) == [json.loads(line) for line in LINES.splitlines()]
    assert is_complete(tmp_path)


@pytest.mark.parametrize("damage", ["changed", "missing", "no record"])
def test_other_examples_are_not(record: EvaluationRecord, tmp_path: Path, damage: str) -> None:
    if damage == "no record":
        (tmp_path / EVALUATION).unlink()
    else:
        if damage == "changed":
            (tmp_path / EXAMPLES).write_text(LINES.replace("1", "2"))
        else:
            (tmp_path / EXAMPLES).unlink()
        with pytest.raises(DataError, match=str(tmp_path / EXAMPLES)):
            verified_examples(tmp_path, record)
    assert not is_complete(tmp_path)
