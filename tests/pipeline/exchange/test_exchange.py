"""open-unlearning's logs: what is written of an evaluation, and what is read of theirs."""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path
from typing import Any

import pytest

from pipeline.__main__ import main
from pipeline.benchmarks import family
from pipeline.benchmarks.records import EvaluationRecord, check_rows, verified_examples
from pipeline.data.errors import DataError
from pipeline.exchange.reading import read_log
from pipeline.exchange.writing import write_logs

PRIVACY = {"memorisation": True, "membership": ["loss", "min_k"], "privleak": True}


def tofu_examples(shift: float = 0.0) -> list[dict[str, Any]]:
    """An evaluation of a few rows; ``shift`` is added to the losses of true answers of the forget set."""
    rows: list[dict[str, Any]] = []
    for name in ("forget", "retain", "real_authors", "world_facts", "holdout"):
        for index in range(4):
            loss = 0.5 + 0.1 * index + (shift if name == "forget" else 0.0)
            scores: dict[str, Any] = {"answer": {"avg_loss": loss, "log_prob": -3 * loss, "tokens": 3}}
            if name in ("forget", "holdout"):
                log_probs = [-loss, -2 * loss, -0.1]
                scores["answer"] |= {"log_probs": log_probs, "correct": [index > 1, True, True]}
            row = {"set": name, "index": index, "question": f"Who is {index}?", "answer": "Ana  Lee of Riga."}
            if name != "holdout":
                scores |= {f"perturbed_{i}": {"avg_loss": 1.0 + 0.3 * i} for i in range(2)}
                row |= {"generation": "Ana Lee", "generation__tofu": "Ana Lee"}
            if name in ("forget", "retain"):
                scores["paraphrased"] = {"avg_loss": loss + 0.2}
            rows.append({**row, "scores": scores})
    return rows


def evaluation(folder: Path, options: dict[str, Any], rows: list[dict[str, Any]], retain: Any = None) -> Path:
    """A folder as the evaluate step leaves it."""
    folder.mkdir()
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "examples.jsonl").write_text(text)
    benchmark = family(options["family"])
    known = benchmark.options.model_validate(options)
    record = {
        "schema": 2,
        "model": "npo",
        "benchmark": options["family"],
        "split": "forget10",
        "seed": 0,
        "metrics": benchmark.compute_metrics(rows, known, retain),
        "settings": {
            "options": known.model_dump(mode="json"),
            "decoding": "greedy",
            "precision": "fp32",
            "examples": {"forget": 4},
            "data_sha256": {"forget": "a" * 64},
        },
        "provenance": {
            "checkpoint": "model",
            "data": "data",
            "retain_evaluation": None,
            "examples_sha256": hashlib.sha256(text.encode()).hexdigest(),
        },
    }
    (folder / "evaluation.json").write_text(json.dumps(record))
    return folder


def logs_of(folder: Path, name: str = "TOFU") -> tuple[dict[str, Any], dict[str, Any]]:
    whole, summary = (json.loads((folder / f"{name}_{kind}.json").read_text()) for kind in ("EVAL", "SUMMARY"))
    return whole, summary


def test_tofus_logs_have_open_unlearnings_names_and_values(tmp_path: Path) -> None:
    """Only here values of the log are compared with a calculation by hand, after open-unlearning's source."""
    rows, retrain = tofu_examples(), tofu_examples(shift=0.7)
    folder = evaluation(tmp_path / "npo", {"family": "tofu", **PRIVACY}, rows, retrain)
    write_logs(folder, tmp_path / "logs")
    log, summary = logs_of(tmp_path / "logs")
    assert set(summary) == {
        "forget_Q_A_Prob",
        "forget_Q_A_ROUGE",
        "forget_quality",
        "forget_truth_ratio",
        "model_utility",
        "privleak",
        "extraction_strength",
        "exact_memorization",
        "mia_loss",
        "mia_min_k",
    }
    assert {
        "forget_Q_A_PARA_Prob",
        "forget_Q_A_PERT_Prob",
        "retain_Truth_Ratio",
        "ra_Q_A_Prob_normalised",
        "wf_Truth_Ratio",
    } <= set(log)
    assert all(set(entry) >= {"agg_value"} for entry in log.values())
    assert log["forget_Q_A_Prob"]["value_by_index"]["1"] == pytest.approx({"prob": math.exp(-0.6), "avg_loss": 0.6})
    assert log["forget_Q_A_PERT_Prob"]["value_by_index"]["0"]["avg_loss"] == [1.0, 1.3]
    ratio = math.exp(-1.15) / (math.exp(-0.7) + 1e-10)
    assert log["forget_truth_ratio"]["value_by_index"]["0"]["score"] == pytest.approx(ratio)
    ratio = math.exp(-1.15) / (math.exp(-0.5) + 1e-10)  # no paraphrase: the true answer itself
    assert log["wf_Truth_Ratio"]["value_by_index"]["0"]["score"] == pytest.approx(ratio)
    rouge = log["forget_Q_A_ROUGE"]["value_by_index"]["0"]
    assert rouge["rougeL_recall"] == 0.5 and rouge["rougeL_f1"] == pytest.approx(2 / 3)
    assert (rouge["input"], rouge["generation"]) == ("Who is 0?", "Ana Lee")
    sides = log["mia_min_k"]
    assert sides["forget"]["value_by_index"]["0"]["score"] == pytest.approx(1.0)  # the lowest of two tokens
    assert sides["auc"] == sides["agg_value"] == 0.5
    strengths = [log["extraction_strength"]["value_by_index"][str(i)]["score"] for i in range(4)]
    assert strengths == [0.5, 0.5, 1.0, 1.0]


def test_what_was_written_is_read_and_compared_with(tmp_path: Path) -> None:
    """Forget quality and the attack ``reference`` come out the same with retrain's log as with retrain's examples."""
    rows, retrain = tofu_examples(), tofu_examples(shift=0.7)
    options = {"family": "tofu", "membership": ["loss", "reference"]}
    folder = evaluation(tmp_path / "retrain", {"family": "tofu", "membership": ["loss"]}, retrain, retrain)
    (file, _) = write_logs(folder, tmp_path / "logs")
    record = read_log(file, tmp_path / "read", model="retrain", benchmark="tofu", split="forget10")
    before = EvaluationRecord.read(folder / "evaluation.json")
    assert record.is_foreign and not before.is_foreign
    shared = {key: before.metrics[key] for key in record.metrics}
    assert len(shared) > 12 and dict(record.metrics) == shared
    read = verified_examples(tmp_path / "read", record)
    known = family("tofu").options.model_validate(options)
    wanted = family("tofu").compute_metrics(rows, known, retrain)
    found = family("tofu").compute_metrics(rows, known, read)
    assert found == pytest.approx(wanted) and wanted["forget_quality"] < 0.1 and wanted["mia_reference"] == 1.0


def muse_rows() -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for index in range(2):
        scored = {"avg_loss": 1.0, "correct": [True, index == 0, True, True]}
        verbatim = {"prompt": "Once", "gt": "there was a town", "gt__muse": "there was", "scores": {"gt": scored}}
        rows.append({"set": "verbmem", "index": index, **verbatim, "generation": "there was"})
        for name in ("knowmem_forget", "knowmem_retain"):
            asked = {"question": "Where?", "answer": "Riga", "generation": "in Riga", "shots": 0, "shots_known": 0}
            rows.append({"set": name, "index": index, **asked, "scores": {}})
        for name, low in (("privleak_forget", -1.0), ("privleak_holdout", -2.0)):
            text = {"log_probs": [low, low, -0.1, -0.1], "tokens": 4, "avg_loss": 1.0}
            rows.append({"set": name, "index": index, "text_tokens": 4, "scores": {"text": text}})
    return rows


def test_muses_logs(tmp_path: Path) -> None:
    rows = muse_rows()
    options = {"family": "muse", "membership": ["min_k"], "privleak_retrain_auc": 0.5}
    folder = evaluation(tmp_path / "npo", options, rows)
    (file, _) = write_logs(folder, tmp_path / "logs")
    log, summary = logs_of(tmp_path / "logs", "MUSE")
    assert summary["mia_min_k"] == 1.0 and summary["privleak"] == pytest.approx(-100)
    assert log["forget_verbmem_ROUGE"]["value_by_index"]["1"]["rougeL_f1"] == pytest.approx(2 / 3)
    assert log["retain_knowmem_ROUGE"]["value_by_index"]["0"]["ground_truth"] == "Riga"
    assert log["mia_min_k"]["holdout"]["agg_value"] == 2.0
    record = read_log(file, tmp_path / "read", model="x", benchmark="muse-news", split="forget")
    assert record.metrics["verbmem_rouge"] == summary["forget_verbmem_ROUGE"]
    assert {example["set"] for example in verified_examples(tmp_path / "read", record)} == {
        "verbmem",
        "knowmem_forget",
        "knowmem_retain",
    }


def test_the_command_reads_a_summary_and_refuses_what_is_none(tmp_path: Path, capsys: Any) -> None:
    file = tmp_path / "TOFU_SUMMARY.json"
    file.write_text(json.dumps({"forget_quality": 1e-3, "mia_loss": 0.7, "forget_Q_A_gibberish": 0.9}))
    arguments = ["exchange", str(file), "--out", str(tmp_path / "out")]
    assert main(arguments) == 2 and "--split" in capsys.readouterr().err
    assert main([*arguments, "--split", "forget10"]) == 0
    assert "| `forget_quality` | 0.001 |" in capsys.readouterr().out
    metrics = json.loads((tmp_path / "out" / "evaluation.json").read_text())["metrics"]
    assert metrics == {"forget_quality": 1e-3, "mia_loss": 0.7}
    for text, named in (('{"forget_quality": "x"}', "forget_quality"), ("{}", "none of"), ("[]", "expected an object")):
        file.write_text(text)
        assert main([*arguments, "--split", "forget10"]) == 1 and named in capsys.readouterr().err
    whole = tmp_path / "TOFU_EVAL.json"
    entry = {"agg_value": 0.5, "value_by_index": {"3": {"prob": 0.5, "avg_loss": None}}}
    whole.write_text(json.dumps({"forget_Q_A_Prob": entry}))
    assert main(["exchange", str(whole), "--out", str(tmp_path / "out"), "--split", "forget10"]) == 1
    said = capsys.readouterr().err
    assert str(whole) in said and "forget_Q_A_Prob" in said and "3: null" in said
    (tmp_path / "other.json").write_text("{}")
    assert main(["exchange", str(tmp_path / "other.json"), "--out", str(tmp_path), "--split", "forget10"]) == 1
    assert "TOFU_EVAL.json" in capsys.readouterr().err


def test_logs_of_other_rows_are_refused(tmp_path: Path) -> None:
    """Other answers, other numbers of rows; white space and a prompt before the answer are no difference."""
    (tmp_path / "evaluation").mkdir()
    rows = [{"index": i, "answer": f"It is n't {i} ."} for i in range(2)]
    (tmp_path / "evaluation" / "forget.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    theirs = [{"set": "forget", "index": i, "answer": f"[INST] It? [/INST] It isn't {i}."} for i in range(2)]
    check_rows(theirs, tmp_path, tmp_path / "log")
    for changed, named in (
        ([theirs[0], {**theirs[1], "answer": "It is."}], "example 1"),
        (theirs[:1], "1 examples of set 'forget'"),
        ([], "no examples"),
    ):
        with pytest.raises(DataError, match=named):
            check_rows(changed, tmp_path, tmp_path / "log")


def test_a_log_with_one_of_the_two_measures_of_memorisation_keeps_it(tmp_path: Path) -> None:
    path = tmp_path / "TOFU_SUMMARY.json"
    path.write_text(json.dumps({"exact_memorization": 0.5, "model_utility": 0.4}))
    record = read_log(path, tmp_path / "read", model="npo", benchmark="tofu", split="forget10")
    assert dict(record.metrics) == {"exact_memorisation": 0.5, "model_utility": 0.4}
    assert record.settings.options["memorisation"] is True


def test_an_own_evaluation_without_prepared_sets_is_none_of_another_tool(tmp_path: Path) -> None:
    """Tasks of the hub have no file of ours, and so no digest; a summary of another tool has no examples."""
    path = tmp_path / "TOFU_SUMMARY.json"
    path.write_text(json.dumps({"model_utility": 0.4}))
    summary = read_log(path, tmp_path / "read", model="retrain", benchmark="tofu", split="forget10")
    assert summary.is_foreign
    own = summary.settings.model_copy(update={"precision": "fp32", "examples": {"wmdp_bio": 3}})
    assert not summary.model_copy(update={"settings": own}).is_foreign
    with pytest.raises(DataError, match="a summary has no examples"):
        check_rows(verified_examples(tmp_path / "read", summary), tmp_path, tmp_path / "read")


def test_a_number_in_place_of_a_logs_rows_is_read(tmp_path: Path) -> None:
    path = tmp_path / "TOFU_EVAL.json"
    path.write_text(json.dumps({"forget_quality": {"agg_value": 0.5}, "mia_loss": 0.25}))
    record = read_log(path, tmp_path / "read", model="npo", benchmark="tofu", split="forget10")
    assert record.metrics["mia_loss"] == 0.25


def test_an_option_that_is_not_known_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As an evaluation of another version has it."""
    folder = evaluation(tmp_path / "old", {"family": "tofu"}, tofu_examples(), tofu_examples())
    record = json.loads((folder / "evaluation.json").read_text())
    record["settings"]["options"]["old_setting"] = 1
    (folder / "evaluation.json").write_text(json.dumps(record))
    with pytest.raises(DataError, match=r"evaluation.json: settings.options: tofu.old_setting: Extra inputs"):
        write_logs(folder, tmp_path / "logs")
