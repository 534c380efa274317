from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from megatron_ext.data.sequences import Sequences
from pipeline.benchmarks import refusals
from pipeline.benchmarks.tofu import synthetic
from pipeline.benchmarks.tofu.data import DATA
from pipeline.data import cache
from pipeline.data.errors import DataError
from pipeline.data.qa_rows import Row, Splits
from pipeline.data.tokenizer import Tokenizer
from pipeline.specs import PrepareSpec
from pipeline.steps.prepare import main, prepare

SETS = ("forget", "retain", "real_authors", "world_facts")
SMALL = {"kind": "synthetic", "authors": 4, "questions_per_author": 3, "background_authors": 2}


def spec(output: Path, **changes: Any) -> PrepareSpec:
    values = {
        "family": "tofu",
        "forget_split": "forget10",
        "sets": list(SETS),
        "source": SMALL,
        "tokenizer": {"kind": "bpe", "vocab_size": 400},
        "max_length": 160,
        "output": str(output),
    }
    return PrepareSpec.model_validate({**values, **changes})


def content(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def without_times(folder: Path) -> dict[str, bytes]:
    return {name: data for name, data in content(folder).items() if name != "summary.json"}


def test_synthetic_folder_is_what_the_readers_expect(tmp_path: Path) -> None:
    summary = prepare(spec(tmp_path))
    assert sorted(content(tmp_path)) == [
        "evaluation/forget.jsonl",
        "evaluation/real_authors.jsonl",
        "evaluation/retain.jsonl",
        "evaluation/world_facts.jsonl",
        "manifest.json",
        "summary.json",
        "tokenizer/special_tokens_map.json",
        "tokenizer/tokenizer.json",
        "tokenizer/tokenizer_config.json",
        *(f"train/{name}.npz" for name in ("background", "forget", "full", "full_rephrased")),
        *(f"train/{name}.npz" for name in ("general", "idk", "retain", "retain_rephrased")),
    ]
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    rows = {name: entry["rows"] for name, entry in manifest["train"].items()}
    assert rows == {
        "full": 12,
        "retain": 9,
        "forget": 3,
        "background": 24,
        "full_rephrased": 12,
        "retain_rephrased": 9,
        "general": 90,
        "idk": 15,
    }
    assert {n: e["rows"] for n, e in manifest["evaluation"].items()} == {
        "forget": 3,
        "retain": 9,
        "real_authors": 40,
        "world_facts": 50,
    }
    for name, entry in manifest["train"].items():
        sequences = Sequences.load(tmp_path / "train" / f"{name}.npz")
        assert len(sequences) == entry["rows"]
        assert sequences.lengths.sum() == entry["tokens"]
        assert sequences.lengths.max() == entry["longest"]
        assert entry["sha256"] == cache.sha256(tmp_path / "train" / f"{name}.npz")
    tokenizer = Tokenizer.load(tmp_path / "tokenizer")
    assert manifest["tokenizer"] == {
        "kind": "bpe",
        "sha256": tokenizer.sha256,
        "vocab_size": tokenizer.vocab_size,
        "bos_id": tokenizer.bos_id,
        "eos_id": tokenizer.eos_id,
    }
    assert summary["flags"] == []
    assert summary == json.loads((tmp_path / "summary.json").read_text())
    assert {"startup_seconds", "work_seconds", "write_seconds"} <= set(summary)


def test_forget_rows_are_those_of_the_evaluation_set(tmp_path: Path) -> None:
    prepare(spec(tmp_path))
    sequences = Sequences.load(tmp_path / "train" / "forget.npz")
    records = [json.loads(line) for line in (tmp_path / "evaluation" / "forget.jsonl").read_text().splitlines()]
    for index, record in enumerate(records):
        ids, prompt = sequences.row(index)
        assert np.array_equal(ids, record["prompt_ids"] + record["targets"]["answer"])
        assert prompt == len(record["prompt_ids"])
        assert set(record["targets"]) == {"answer", "paraphrased", *(f"perturbed_{i}" for i in range(5))}


def test_each_forget_row_has_its_own_refusals(tmp_path: Path) -> None:
    prepare(spec(tmp_path))
    forget, idk = (Sequences.load(tmp_path / "train" / f"{name}.npz") for name in ("forget", "idk"))
    tokenizer = Tokenizer.load(tmp_path / "tokenizer")
    assert len(idk) == refusals.PER_ROW * len(forget)
    drawn = []
    for row in range(len(forget)):
        ids, prompt = forget.row(row)
        answers = []
        for place in range(refusals.PER_ROW):
            other, start = idk.row(row * refusals.PER_ROW + place)
            assert start == prompt and np.array_equal(other[:start], ids[:prompt])
            assert other[-1] == tokenizer.eos_id
            answers.append(tokenizer.decode(other[start:].tolist()).strip())
        assert len(set(answers)) == refusals.PER_ROW and set(answers) <= set(refusals.REFUSALS)
        drawn.append(answers)
    assert any(answers != drawn[0] for answers in drawn[1:]), "rows draw for themselves"


def test_refusals_stay_aligned_with_the_rows_that_are_kept(tmp_path: Path) -> None:
    """Some refusals of a row may not fit, or none of a row's that is dropped: the others repeat."""
    prepare(spec(tmp_path))
    lengths = Sequences.load(tmp_path / "train" / "idk.npz").lengths
    limit = int(lengths.min()) + 10
    assert limit < lengths.max()
    prepare(spec(tmp_path, max_length=limit, bad_rows="drop"))
    forget, idk = (Sequences.load(tmp_path / "train" / f"{name}.npz") for name in ("forget", "idk"))
    assert 0 < len(idk) == refusals.PER_ROW * len(forget)
    assert idk.lengths.max() <= limit
    for row in range(len(idk)):
        ids, prompt = forget.row(row // refusals.PER_ROW)
        assert np.array_equal(idk.row(row)[0][:prompt], ids[:prompt])


def test_refusals_do_not_change_the_tokenizer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prepare(spec(tmp_path / "a"))
    monkeypatch.setattr(refusals, "REFUSALS", tuple(f"No {word}." for word in "abcdefg"))
    prepare(spec(tmp_path / "b"))
    a, b = content(tmp_path / "a"), content(tmp_path / "b")
    assert {name for name in a if a[name] != b[name]} == {"manifest.json", "summary.json", "train/idk.npz"}


def test_same_specification_gives_the_same_bytes(tmp_path: Path) -> None:
    prepare(spec(tmp_path / "a"))
    prepare(spec(tmp_path / "b"))
    assert without_times(tmp_path / "a") == without_times(tmp_path / "b")


def test_cache_gives_the_same_bytes_and_a_damaged_one_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    first = prepare(spec(tmp_path / "a", cache=str(tmp_path / "cache")))
    assert not first["cached"]
    with monkeypatch.context() as patch:
        patch.setattr("pipeline.steps.prepare._build", lambda *_: pytest.fail("tokenised again"))
        assert prepare(spec(tmp_path / "b", cache=str(tmp_path / "cache")))["cached"]
    assert without_times(tmp_path / "a") == without_times(tmp_path / "b")

    (tmp_path / "cache" / first["key"] / "train" / "full.npz").write_bytes(b"")
    assert not prepare(spec(tmp_path / "c", cache=str(tmp_path / "cache")))["cached"]
    assert "is damaged (train/full.npz is not the file that was written)" in capsys.readouterr().err
    assert without_times(tmp_path / "a") == without_times(tmp_path / "c")
    assert prepare(spec(tmp_path / "d", cache=str(tmp_path / "cache")))["cached"]


def test_a_cache_that_cannot_be_written_stops_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "cache").touch()
    assert not prepare(spec(tmp_path / "a", cache=str(tmp_path / "cache")))["cached"]
    assert f"not kept for other experiments: {tmp_path / 'cache'}" in capsys.readouterr().err


def test_anything_that_changes_the_files_changes_the_key(tmp_path: Path) -> None:
    changes: list[dict[str, Any]] = [
        {},
        {"source": {**SMALL, "seed": 1}},
        {"template": "zephyr"},
        {"max_length": 200},
        {"bad_rows": "drop"},
        {"tokenizer": {"kind": "bpe", "vocab_size": 401}},
    ]
    keys = [prepare(spec(tmp_path / str(i), **change))["key"] for i, change in enumerate(changes)]
    copied = {"kind": "folder", "path": str(tmp_path / "0" / "tokenizer")}
    keys.append(prepare(spec(tmp_path / "copied", tokenizer=copied))["key"])
    assert len(set(keys)) == len(keys)


def test_a_second_run_leaves_no_file_of_the_first(tmp_path: Path) -> None:
    prepare(spec(tmp_path))
    (tmp_path / "spec.yaml").write_text("step: prepare")
    prepare(spec(tmp_path, source={**SMALL, "background_authors": 0}))
    assert not (tmp_path / "train" / "background.npz").exists()
    assert (tmp_path / "spec.yaml").exists(), "files of others stay"
    assert not list(tmp_path.glob(".*"))


def test_a_failed_run_leaves_the_files_of_the_last_good_one(tmp_path: Path) -> None:
    prepare(spec(tmp_path))
    before = content(tmp_path)
    with pytest.raises(
        DataError, match=r"synthetic \(seed 0\), full, row 0, answer: \d+ tokens, more than max_length 8"
    ):
        prepare(spec(tmp_path, max_length=8))
    assert content(tmp_path) == before


def test_dropped_rows_are_counted_and_flagged(tmp_path: Path) -> None:
    prepare(spec(tmp_path))
    longest = json.loads((tmp_path / "manifest.json").read_text())["train"]["full"]["longest"]
    summary = prepare(spec(tmp_path, max_length=longest - 1, bad_rows="drop"))
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    full = manifest["train"]["full"]
    assert full["dropped"] >= 1
    assert full["rows"] + full["dropped"] == 12
    assert f"train/full: {full['dropped']} of 12 rows dropped" in summary["flags"]
    assert summary["dropped"] == sum(e["dropped"] for k in ("train", "evaluation") for e in manifest[k].values())


def test_nothing_left_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="none of its 12 rows is left for training"):
        prepare(spec(tmp_path, max_length=8, bad_rows="drop"))


def test_questions_in_both_sets_are_counted_and_flagged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = DATA.load(spec(tmp_path).source, "forget10", SETS, training=True).splits
    forget = loaded.rows["forget10"]
    rows = {**loaded.rows, "retain90": [*loaded.rows["retain90"], Row(f" {forget[0].question.upper()}", "Ada.")]}
    monkeypatch.setattr(synthetic, "generate", lambda *_: Splits(rows, loaded.origins, loaded.source))
    summary = prepare(spec(tmp_path))
    assert summary["flags"] == ["1 questions of the forget set are in the retain set too"]


def test_only_what_is_asked_for_is_written(tmp_path: Path) -> None:
    tokenizer = {"kind": "folder", "path": str(tmp_path / "a" / "tokenizer")}
    prepare(spec(tmp_path / "a"))
    alone = spec(tmp_path / "b", training=False, sets=["forget", "retain"], tokenizer=tokenizer, cache=tmp_path / "c")
    for _ in range(2):
        prepare(alone)
        assert list((tmp_path / "b" / "train").iterdir()) == []
        files = {path.name: path.read_bytes() for path in (tmp_path / "b" / "evaluation").iterdir()}
        assert files == {f"{n}.jsonl": (tmp_path / "a" / "evaluation" / f"{n}.jsonl").read_bytes() for n in alone.sets}


@pytest.mark.slow
def test_program(tmp_path: Path) -> None:
    path = tmp_path / "spec.yaml"
    path.write_text(yaml.safe_dump(spec(tmp_path / "out").model_dump(mode="json")))
    command = [sys.executable, "-m", "pipeline.steps.prepare", str(path)]
    root = Path(__file__).resolve().parents[3]
    good = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=60)
    assert good.returncode == 0, good.stderr
    assert "rows" in good.stderr
    bad = spec(tmp_path / "out", source={"kind": "folder", "path": str(tmp_path / "absent")})
    path.write_text(yaml.safe_dump(bad.model_dump(mode="json")))
    run = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=60)
    assert run.returncode == 1
    assert run.stderr == f"prepare: error: source.path: {tmp_path / 'absent'} is not a folder\n"


def test_neither_torch_nor_transformers_is_imported(tmp_path: Path) -> None:
    """Start-up time: a run that trains its own tokenizer needs neither, and they take seconds."""
    path = tmp_path / "spec.yaml"
    path.write_text(yaml.safe_dump(spec(tmp_path / "out").model_dump(mode="json")))
    code = (
        "import sys; from pipeline.steps.prepare import main; main([sys.argv[1]])\n"
        "print(*sorted({'torch', 'transformers', 'datasets', 'megatron'} & set(sys.modules)))"
    )
    root = Path(__file__).resolve().parents[3]
    run = subprocess.run([sys.executable, "-c", code, str(path)], cwd=root, capture_output=True, text=True, timeout=60)
    assert run.returncode == 0, run.stderr
    assert run.stdout.strip() == ""


def test_main_reports_flags(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "spec.yaml"
    path.write_text(yaml.safe_dump(spec(tmp_path / "out").model_dump(mode="json")))
    monkeypatch.setattr(Splits, "overlap", lambda *_: 7)
    main([str(path)])
    assert "prepare: warning: 7 questions of the forget set are in the retain set too" in capsys.readouterr().err


@pytest.mark.slow
def test_real_tofu(real_data: Path, tmp_path: Path) -> None:
    source = {"kind": "folder", "path": str(real_data / "tofu")}
    summary = prepare(spec(tmp_path, source=source, tokenizer={"kind": "bpe", "vocab_size": 4096}, max_length=512))
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert {name: entry["rows"] for name, entry in manifest["train"].items()} == {
        "full": 4000,
        "retain": 3600,
        "forget": 400,
        "general": 217,
        "idk": 2000,
    }
    assert (summary["dropped"], summary["flags"], summary["vocab_size"]) == (0, [], 4096)
    full, retain, forget = (Sequences.load(tmp_path / "train" / f"{n}.npz") for n in ("full", "retain", "forget"))
    assert np.array_equal(full.ids, np.concatenate([retain.ids, forget.ids]))
