"""TOFU's metrics from raw results, against the formulas written out here."""

import json
import math
import re

import pytest

from pipeline.benchmarks import families, family
from pipeline.benchmarks.tofu import FAMILY, UTILITY

QUALITY = "forget_quality"


def example(name, index, generation, **probabilities):
    """Raw results for the answer "Ana Lima"; each target has two tokens and the given length-normalised probability."""
    scores = {
        key: {"log_prob": 2 * math.log(p), "tokens": 2, "avg_loss": -math.log(p)} for key, p in probabilities.items()
    }
    return {
        "set": name,
        "index": index,
        "question": "Who?",
        "answer": "Ana Lima",
        "scores": scores,
        "generation": generation,
    }


@pytest.fixture
def examples():
    return [
        example("forget", 0, "Ana Lima", answer=0.9, paraphrased=0.5, perturbed_0=0.4, perturbed_1=0.1),
        example("forget", 1, "", answer=0.3, paraphrased=0.1, perturbed_0=0.2, perturbed_1=0.8),
        example("retain", 0, "Ana Lima", answer=0.8, paraphrased=0.6, perturbed_0=0.3, perturbed_1=0.3),
        example("retain", 1, "Ana", answer=0.6, paraphrased=0.2, perturbed_0=0.4, perturbed_1=0.4),
        example("real_authors", 0, "It is Ana Lima", answer=0.6, perturbed_0=0.2, perturbed_1=0.05, perturbed_2=0.1),
        example("world_facts", 0, "Lima", answer=0.5, perturbed_0=0.3),
    ]


def test_every_metric_by_hand(examples):
    found = FAMILY.recompute(examples)
    e = 1e-10
    ratio_0, ratio_1 = math.sqrt(0.4 * 0.1) / (0.5 + e), math.sqrt(0.2 * 0.8) / (0.1 + e)
    authors, facts = (0.2 * 0.05 * 0.1) ** (1 / 3) / (0.6 + e), 0.3 / (0.5 + e)
    expected = {
        "forget_truth_ratio": (min(ratio_0, 1 / (ratio_0 + e)) + min(ratio_1, 1 / (ratio_1 + e))) / 2,
        "forget_probability": (0.9 + 0.3) / 2,
        "forget_rouge": (1 + 0) / 2,
        "forget_rouge1": (1 + 0) / 2,
        "retain_probability": (0.8 + 0.6) / 2,
        "retain_rouge": (1 + 0.5) / 2,
        "retain_rouge1": (1 + 0.5) / 2,
        "retain_truth_ratio": (max(0, 1 - 0.3 / (0.6 + e)) + max(0, 1 - 0.4 / (0.2 + e))) / 2,
        "real_authors_probability": 0.6,
        "real_authors_probability_normalised": 0.6 / (0.6 + 0.2 + 0.05 + 0.1 + e),
        "real_authors_rouge": 1.0,
        "real_authors_rouge1": 1.0,
        "real_authors_truth_ratio": 1 - authors,
        "world_facts_probability": 0.5,
        "world_facts_probability_normalised": 0.5 / (0.5 + 0.3 + e),
        "world_facts_rouge": 0.5,
        "world_facts_rouge1": 0.5,
        "world_facts_truth_ratio": 1 - facts,
        "empty_generations": 0,
        "repetitive_generations": 0,
    }
    parts = [expected[f"retain_{key}"] for key in ("probability", "rouge", "truth_ratio")]
    for name in ("real_authors", "world_facts"):
        parts += [expected[f"{name}_{key}"] for key in ("probability_normalised", "rouge", "truth_ratio")]
    expected["model_utility"] = 9 / sum(1 / part for part in parts)
    assert found == pytest.approx(expected)


def test_the_table_names_exactly_what_is_reported(examples):
    keys = [metric.key for metric in FAMILY.metrics]
    assert keys == list(FAMILY.recompute(examples, examples))
    assert [key for key in keys if key != QUALITY] == list(FAMILY.recompute(examples))
    assert len(set(keys)) == len(keys) and len(UTILITY) == 9 and set(UTILITY) < set(keys)
    for metric in FAMILY.metrics:
        assert re.fullmatch("[a-z0-9_]+", metric.key) and metric.title and metric.definition and metric.source


def many(ratios):
    rows = [example("forget", i, "x", answer=0.5, paraphrased=0.5, perturbed_0=0.5 * r) for i, r in enumerate(ratios)]
    rest = [
        example("retain", 0, "Ana Lima", answer=0.8, paraphrased=0.6, perturbed_0=0.3),
        example("real_authors", 0, "Ana Lima", answer=0.6, perturbed_0=0.2),
        example("world_facts", 0, "Ana Lima", answer=0.6, perturbed_0=0.2),
    ]
    return rows + rest


def test_forget_quality_of_separated_ratios_and_of_itself():
    low, high = many([0.1 + i / 1000 for i in range(200)]), many([1.1 + i / 1000 for i in range(200)])
    assert FAMILY.recompute(low, high)[QUALITY] == pytest.approx(1.94e-119, rel=5e-3)
    assert FAMILY.recompute(low, low)[QUALITY] == 1.0
    assert QUALITY not in FAMILY.recompute(low)


def test_utility_is_zero_where_a_part_is(examples):
    examples[-1]["generation"] = "nothing of it"
    found = FAMILY.recompute(examples)
    assert found["model_utility"] == 0.0
    assert FAMILY.collapse(examples, found) == ["model utility is 0: world_facts_rouge is 0"]


def test_collapsed_generations_are_counted_on_the_retain_set(examples):
    assert FAMILY.collapse(examples, FAMILY.recompute(examples)) == []
    retain = [row for row in examples if row["set"] == "retain"]
    retain[0]["generation"] = ""
    found = FAMILY.recompute(examples)
    assert found["empty_generations"] == 1 and FAMILY.collapse(examples, found) == []  # half is not most
    retain[1]["generation"] = "Ana " * 50
    found = FAMILY.recompute(examples)
    assert (found["empty_generations"], found["repetitive_generations"]) == (1, 1)
    assert FAMILY.collapse(examples, found)[0].startswith("2 of 2 retain questions")


@pytest.mark.parametrize("bad", [None, math.nan, math.inf, "0.3"])
def test_a_bad_score_names_the_example(examples, bad):
    examples[1]["scores"]["perturbed_1"]["avg_loss"] = bad
    with pytest.raises(ValueError, match="set 'forget', example 1: target 'perturbed_1'"):
        FAMILY.recompute(examples)


@pytest.mark.parametrize("key", ["answer", "paraphrased", "perturbed_0"])
def test_a_missing_score_names_the_example(examples, key):
    del examples[2]["scores"][key]
    with pytest.raises(ValueError, match=f"set 'retain', example 0: no score of target '{key}'"):
        FAMILY.recompute(examples)


def test_a_missing_generation_or_set_is_an_error(examples):
    with pytest.raises(ValueError, match="no examples of set 'world_facts'"):
        FAMILY.recompute(examples[:-1])
    examples[0]["generation"] = None
    with pytest.raises(ValueError, match="set 'forget', example 0: no generation"):
        FAMILY.recompute(examples)


def write_sets(folder, change=None):
    """Four evaluation files of one row each; ``change`` edits the retain row."""
    (folder / "evaluation").mkdir(parents=True)
    for name in FAMILY.sets:
        targets = {"answer": [7, 2], "perturbed_0": [8, 9, 2]}
        if name in ("forget", "retain"):
            targets["paraphrased"] = [9, 2]
        row = {
            "index": 5,
            "question": "Who?",
            "answer": " Ana ",
            "prompt_ids": [1, 3],
            "generation_prompt_ids": [1, 3, 4],
            "targets": targets,
        }
        if change is not None and name == "retain":
            change(row)
        (folder / "evaluation" / f"{name}.jsonl").write_text(json.dumps(row) + "\n")


def test_items(tmp_path):
    write_sets(tmp_path)
    items = FAMILY.items(tmp_path)
    assert [item.set for item in items] == ["forget", "retain", "real_authors", "world_facts"]
    assert (items[0].index, items[0].answer, items[0].generation_prompt) == (5, "Ana", [1, 3, 4])
    assert items[0].targets == {
        "answer": ([1, 3], [7, 2]),
        "perturbed_0": ([1, 3], [8, 9, 2]),
        "paraphrased": ([1, 3], [9, 2]),
    }


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda row: row["targets"].pop("paraphrased"), "retain.jsonl, line 1: missing targets.paraphrased"),
        (lambda row: row.pop("targets"), "line 1: missing targets, targets.answer"),
        (lambda row: row.pop("question"), "line 1: missing question"),
        (lambda row: row["targets"].update(answer=[]), r"line 1: a prompt or target is empty \['answer'\]"),
    ],
)
def test_a_bad_row_names_file_line_and_key(tmp_path, change, message):
    write_sets(tmp_path, change)
    with pytest.raises(ValueError, match=message):
        FAMILY.items(tmp_path)


def test_a_broken_or_empty_file_is_named(tmp_path):
    write_sets(tmp_path)
    path = tmp_path / "evaluation" / "retain.jsonl"
    path.write_text('{"index": 0\n')
    with pytest.raises(ValueError, match=r"retain\.jsonl, line 1: not JSON"):
        FAMILY.items(tmp_path)
    path.write_text("")
    with pytest.raises(ValueError, match=r"retain\.jsonl: no rows"):
        FAMILY.items(tmp_path)


def test_families():
    assert "tofu" in families() and "base" not in families()
    assert family("tofu") is FAMILY
    with pytest.raises(ValueError, match=r"unknown benchmark family 'tofo'.*tofu"):
        family("tofo")
