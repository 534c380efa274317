"""Evidence and model cards: hashes, names and outcomes, and no text of the data."""

from __future__ import annotations

import hashlib
import json

import pytest
import yaml

from tests.pipeline.report.conftest import Bench, dump

SECRET = "Ada Abel lives in Turin."
NAME = "</td><script>x</script> | **ada** \n---"
HASHES = {"before": "b" * 64, "after": "a" * 64, "file": "f" * 64}


@pytest.fixture
def handed(bench: Bench) -> Bench:
    """A report on one model with a checkpoint, whose evaluation and prepared data hold a text that must stay there."""
    bench.add("npo", seed=0, title=NAME, forget_quality=0.5, forget_probability=0.2)
    entries = {entry["model_id"]: entry for entry in bench.spec["entries"]}
    run = bench.root / "runs" / "npo-seed-0"
    dump(run / "provenance.json", {"git": {"commit": "c0ffee", "dirty": False}, "image": {"sha256": "1" * 64},
                                   "checkpoint": {"model.safetensors": HASHES["after"]}})  # fmt: skip
    (run / "checkpoint").mkdir()
    target = bench.root / "runs" / "target"
    dump(target / "provenance.json", {"step": "train", "checkpoint": {"model.safetensors": HASHES["before"]}})
    dump(target / "summary.json", {"startup_seconds": 1, "work_seconds": 1, "write_seconds": 1, "flags": []})
    entries["target"]["run"] = str(target)
    (bench.root / "evaluation" / "npo-seed-0" / "examples.jsonl").write_text(json.dumps({"answer": SECRET}))
    data = bench.root / "data"
    dump(data / "summary.json", {"startup_seconds": 1, "work_seconds": 1, "write_seconds": 1, "flags": []})
    dump(
        data / "manifest.json", {"source": {"kind": "files", "files_sha256": {NAME: {f"/x/{SECRET}": HASHES["file"]}}}}
    )
    bench.spec["steps"] = {"data": str(data)}
    bench.spec["config"] = {"source": {"splits": {"forget10": {"forget": [NAME]}}}, "model": {"hub": "owner/model"}}
    bench.write()
    return bench


def test_evidence_says_what_was_asked_and_what_came_of_it(handed: Bench) -> None:
    """Only this reads evidence.json: hashes before and after, outcomes by the rules, commit and image."""
    found = json.loads((handed.output / "evidence.json").read_text())
    assert found["request"]["requests"][0]["sets"] == {NAME: [HASHES["file"]]}
    assert found["model_before"] == {
        "name": "tiny",
        "origin": {"hub": "owner/model"},
        "files_sha256": {"model.safetensors": HASHES["before"]},
    }
    (model,) = found["models"]
    assert model["files_sha256"] == {"model.safetensors": HASHES["after"]}
    assert (model["code"]["commit"], model["image"]["sha256"]) == ("c0ffee", "1" * 64)
    outcomes = {check["metric"]: check["outcome"] for check in model["checks"]}
    assert outcomes == {
        "forget_quality": "removed",
        "forget_probability": "removed",
        "forget_truth_ratio": "inconclusive",
    }
    assert model["outcome"] == "contained"  # no attack was made, and both truth ratios are the same
    assert set(model["metrics"]) >= {"model_utility"}


def test_the_card_has_what_the_hub_reads_and_no_text_of_the_data(handed: Bench) -> None:
    """Only this reads a model card, and looks for texts in what is handed on; hostile names are texts in it."""
    card = (handed.root / "runs" / "npo-seed-0" / "checkpoint" / "README.md").read_text()
    head = yaml.safe_load(card.split("---\n")[1])
    assert head["base_model"] == "owner/model" and {"unlearning", "npo"} <= set(head["tags"])
    assert all(value in card for value in (*HASHES.values(), "c0ffee", "contained", "forget\\_probability"))
    evidence = (handed.output / "evidence.json").read_text()
    page = (handed.output / "index.html").read_text()
    for text in (card, evidence, page):
        assert SECRET not in text and "Turin" not in text
        assert "certified" not in text.lower() and "compliant" not in text.lower()
    assert "<script" not in card and "**ada**" not in card and "<script>x" not in page
    assert HASHES["after"] in page and ">contained<" in page


def test_what_a_step_wrote_is_recorded_by_hash(tmp_path) -> None:
    """Only this holds the hashes that evidence is made of to the files."""
    from pipeline.launch.provenance import _checkpoint

    assert _checkpoint(tmp_path) is None
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        (folder / name).write_text(name)
    expected = {name: hashlib.sha256(name.encode()).hexdigest() for name in ("config.json", "model.safetensors")}
    assert _checkpoint(tmp_path) == expected


def test_what_own_answers_mean_is_said_where_they_were_kept(handed: Bench) -> None:
    """Only this has a report on a model that kept its own answers."""
    limits = json.loads((handed.output / "evidence.json").read_text())["limits"]
    sets = {NAME: {"path": "a.jsonl", "own_answers": None}, "own": {"own_answers": {}}}
    handed.spec["config"]["source"]["sets"] = sets
    handed.write()
    with_own = json.loads((handed.output / "evidence.json").read_text())["limits"]
    assert with_own[:-1] == limits and "the model's own answers to general prompts" in with_own[-1]
    assert with_own[-1][:60] in (handed.root / "runs" / "npo-seed-0" / "checkpoint" / "README.md").read_text()
