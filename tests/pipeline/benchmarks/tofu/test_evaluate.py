"""TOFU's metrics from raw results, against the formulas written out here."""

import json
import math
import re
import zlib

import pytest

from megatron_ext.inference.generation import GenerateRequest
from pipeline.benchmarks import families, family
from pipeline.benchmarks.tofu.evaluate import FAMILY
from pipeline.benchmarks.tofu.metrics import UTILITY
from pipeline.benchmarks.tofu.options import TofuOptions
from pipeline.data.errors import DataError

QUALITY = "forget_quality"
OPTIONS = TofuOptions()
METRICS = FAMILY.metrics(OPTIONS)


def compute_metrics(examples, retain=None):
    return FAMILY.compute_metrics(examples, OPTIONS, retain)


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
        "generation__tofu": generation,
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
    found = compute_metrics(examples)
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
        # the other aggregators
        "forget_truth_ratio_true_better": (max(0, 1 - ratio_0) + max(0, 1 - ratio_1)) / 2,
        "forget_truth_ratio_prob_mean": (0.5 / (0.5 + 0.2 + e) + 0.1 / (0.1 + 0.4 + e)) / 2,
        "retain_truth_ratio_closer_to_1": (0.3 / 0.6 + 1 / (0.4 / 0.2)) / 2,
        "retain_truth_ratio_prob_mean": (0.6 / (0.6 + 0.3) + 0.2 / (0.2 + 0.4)) / 2,
        "real_authors_truth_ratio_closer_to_1": authors,
        "real_authors_truth_ratio_prob_mean": 0.6 / (0.6 + (0.2 * 0.05 * 0.1) ** (1 / 3)),
        "world_facts_truth_ratio_closer_to_1": facts,
        "world_facts_truth_ratio_prob_mean": 0.5 / (0.5 + 0.3),
    }
    # TOFU's code: arithmetic means of perturbed answers, and no small numbers in the denominators
    original = [(0.8 + 0.6) / 2, 0.75, (max(0, 1 - 0.3 / 0.6) + max(0, 1 - 0.4 / 0.2)) / 2]
    original += [0.6 / (0.6 + 0.2 + 0.05 + 0.1), 1.0, 1 - (0.2 + 0.05 + 0.1) / 3 / 0.6]
    original += [0.5 / (0.5 + 0.3), 0.5, 1 - 0.3 / 0.5]
    expected["model_utility__tofu"] = 9 / sum(1 / part for part in original)
    parts = [expected[f"retain_{key}"] for key in ("probability", "rouge", "truth_ratio")]
    for name in ("real_authors", "world_facts"):
        parts += [expected[f"{name}_{key}"] for key in ("probability_normalised", "rouge", "truth_ratio")]
    expected["model_utility"] = 9 / sum(1 / part for part in parts)
    assert found == pytest.approx(expected)


def test_the_table_names_exactly_what_is_reported(examples):
    keys = [metric.key for metric in METRICS]
    assert keys == list(compute_metrics(examples, examples))
    assert [key for key in keys if not key.startswith(QUALITY)] == list(compute_metrics(examples))
    assert len(set(keys)) == len(keys) and len(UTILITY) == 9 and set(UTILITY) < set(keys)
    for metric in METRICS:
        assert re.fullmatch("[a-z0-9_]+", metric.key) and metric.title and metric.definition and metric.source


def many(ratios):
    rows = [example("forget", i, "x", answer=0.5, paraphrased=0.5, perturbed_0=0.5 * r) for i, r in enumerate(ratios)]
    rest = [
        example("retain", 0, "Ana Lima", answer=0.8, paraphrased=0.6, perturbed_0=0.3),
        example("real_authors", 0, "Ana Lima", answer=0.6, perturbed_0=0.2),
        example("world_facts", 0, "Ana Lima", answer=0.6, perturbed_0=0.2),
    ]
    return rows + rest


def test_what_a_further_request_adds_is_measured_by_itself(examples):
    """Only this has a later request's set: its values are the forget set's on the same rows; no way is better."""
    asked = [{**one, "set": "request_2"} for one in examples if one["set"] == "forget"]
    options = FAMILY.options(requests=2)
    assert FAMILY.sets(options)[-1] == "request_2" and FAMILY.to_forget(options) == {"forget", "request_2"}
    found = FAMILY.compute_metrics([*examples, *asked], options)
    own = {key: value for key, value in found.items() if key.startswith("request_2_")}
    assert own == {f"request_2_{key}": found[f"forget_{key}"] for key in ("probability", "rouge", "truth_ratio")}
    metrics = {metric.key: metric for metric in FAMILY.metrics(options)}
    assert {key: (metrics[key].better, metrics[key].evidence) for key in own} == {
        "request_2_probability": (None, "knowledge"),
        "request_2_rouge": (None, "knowledge"),
        "request_2_truth_ratio": ("one", "likeness"),
    }


def test_forget_quality_of_separated_ratios_and_of_itself():
    low, high = many([0.1 + i / 1000 for i in range(200)]), many([1.1 + i / 1000 for i in range(200)])
    assert compute_metrics(low, high)[QUALITY] == pytest.approx(1.94e-119, rel=5e-3)
    assert compute_metrics(low, low)[QUALITY] == 1.0
    assert QUALITY not in compute_metrics(low)


def test_utility_is_zero_where_a_part_is(examples):
    examples[-1]["generation"] = "nothing of it"
    found = compute_metrics(examples)
    assert found["model_utility"] == 0.0
    assert FAMILY.collapse(examples, OPTIONS, found) == ["model utility is 0: world_facts_rouge is 0"]


def test_collapsed_generations_are_counted_on_the_retain_set(examples):
    assert FAMILY.collapse(examples, OPTIONS, compute_metrics(examples)) == []
    retain = [row for row in examples if row["set"] == "retain"]
    retain[0]["generation"] = ""
    found = compute_metrics(examples)
    assert found["empty_generations"] == 1 and FAMILY.collapse(examples, OPTIONS, found) == []  # half is not most
    retain[1]["generation"] = "Ana " * 50
    found = compute_metrics(examples)
    assert (found["empty_generations"], found["repetitive_generations"]) == (1, 1)
    assert FAMILY.collapse(examples, OPTIONS, found)[0].startswith("2 of 2 retain questions")


@pytest.mark.parametrize("bad", [None, math.nan, math.inf, "0.3"])
def test_a_bad_score_names_the_example(examples, bad):
    examples[1]["scores"]["perturbed_1"]["avg_loss"] = bad
    with pytest.raises(ValueError, match="set 'forget', example 1: target 'perturbed_1'"):
        compute_metrics(examples)


@pytest.mark.parametrize("key", ["answer", "paraphrased", "perturbed_0"])
def test_a_missing_score_names_the_example(examples, key):
    del examples[2]["scores"][key]
    with pytest.raises(ValueError, match=f"set 'retain', example 0: no score of target '{key}'"):
        compute_metrics(examples)


def test_a_missing_generation_or_set_is_an_error(examples):
    with pytest.raises(ValueError, match="no examples of set 'world_facts'"):
        compute_metrics(examples[:-1])
    examples[0]["generation"] = None
    with pytest.raises(ValueError, match="set 'forget', example 0: no generation"):
        compute_metrics(examples)


def test_forget_quality_of_tofus_code_is_of_the_first_300_rows():
    low, high = [0.1 + i / 1000 for i in range(300)], [1.1 + i / 1000 for i in range(300)]
    ours, retrain = many(low + high[:100]), many(low + low[:100])
    found = compute_metrics(ours, retrain)
    assert found[f"{QUALITY}__tofu"] == 1.0
    assert found[QUALITY] < 1e-3


def test_model_utility_of_tofus_code_is_of_the_first_300_rows_and_of_answers_that_end_earlier(examples):
    whole = compute_metrics(examples)
    examples.append(example("retain", 300, "", answer=0.1, paraphrased=0.1, perturbed_0=0.4))
    assert compute_metrics(examples)["model_utility__tofu"] == whole["model_utility__tofu"]
    assert compute_metrics(examples)["model_utility"] < whole["model_utility"]
    examples[2]["generation__tofu"] = "Ana"
    assert compute_metrics(examples)["model_utility__tofu"] < whole["model_utility__tofu"]
    del examples[2]["generation__tofu"]
    with pytest.raises(ValueError, match="set 'retain', example 0: no generation__tofu"):
        compute_metrics(examples)


def test_a_model_that_knows_nothing_has_no_utility_in_any_form(examples):
    """Its probabilities are 0 in floating point, and so are those of all answers together."""
    for row in examples:
        for name in row["scores"]:
            row["scores"][name]["avg_loss"] = 900.0 if name.startswith("perturbed") else 2000.0
    found = compute_metrics(examples)
    assert (found["model_utility"], found["model_utility__tofu"]) == (0.0, pytest.approx(0.0, abs=1e-300))


EVERYTHING = TofuOptions(
    memorisation=True,
    membership=["loss", "zlib", "reference", "gradnorm", "min_k", "min_k_plus_plus"],
    privleak=True,
)
# Of five answers: log-probabilities of their tokens, the last of which is the end token; what is predicted; the norm.
ATTACKED = {
    ("forget", 0): ([-0.1, -0.2, -3.0, -0.4, -0.5, -9.0], [1, 0, 1, 1, 1, 0], 2.0, "Ana Lima"),
    ("forget", 1): ([-1.0, -2.0, -0.5], [0, 0, 1], 1.0, " Ana Lima of Lima"),
    ("forget", 2): ([-2.5, -0.1, -0.1], [0, 1, 1], 3.0, "Lima"),
    ("holdout", 0): ([-1.5, -2.5, -0.1], [0, 0, 0], 4.0, "Oslo, Oslo, Oslo, Oslo, Oslo"),
    ("holdout", 1): ([-1.0, -1.0, -1.0, -1.0], [0, 0, 0, 0], 1.5, "Accra"),
}


def attacked(examples, shift=0.0):
    """``examples`` with numbers of every token of the forget answers, and with holdout answers."""
    rows = [json.loads(json.dumps(row)) for row in examples if row["set"] != "forget"]
    forget = [example("forget", i, "Ana", answer=0.9, paraphrased=0.5, perturbed_0=0.4) for i in range(3)]
    rows += forget + [example("holdout", i, None, answer=0.9) for i in range(2)]
    for row in rows:
        if row["set"] in ("forget", "holdout"):
            log_probs, correct, norm, text = ATTACKED[row["set"], row["index"]]
            log_probs = [value - shift * (row["set"] == "forget") * row["index"] for value in log_probs]
            row["scores"]["answer"] |= {
                "avg_loss": -sum(log_probs) / len(log_probs),
                "log_probs": log_probs,
                "means": [-1.0 - 0.1 * i for i in range(len(log_probs))],
                "variances": [0.5 + i if i else 0.0 for i in range(len(log_probs))],
                "correct": [bool(value) for value in correct],
            }
            row["scores"]["answer_without_end"] = {"avg_loss": 1.0, "gradient_norm": norm}
            row["labelled"] = text
    return rows


def area(forget, holdout):
    """How often a holdout answer's score is the higher one."""
    wins = [1.0 if h > f else 0.5 if h == f else 0.0 for f in forget for h in holdout]
    return sum(wins) / len(wins)


def test_memorisation_and_membership_by_hand(examples):
    ours, retrain = attacked(examples), attacked(examples, shift=0.7)
    found = FAMILY.compute_metrics(ours, EVERYTHING, retrain)
    # without the end token: 5 tokens of which 3 at the end are right; 2 of which none is; 2 of which the last is
    assert found["extraction_strength"] == pytest.approx((3 / 5 + 1 / 2 + 1 / 2) / 3)
    assert found["exact_memorisation"] == pytest.approx((4 / 5 + 0 + 1 / 2) / 3)
    losses = {key: -sum(log_probs) / len(log_probs) for key, (log_probs, *_) in ATTACKED.items()}

    def scores(value):
        return [[value(*key) for key in ATTACKED if key[0] == name] for name in ("forget", "holdout")]

    def lowest(values):
        worst = sorted(values)[: max(1, int(0.4 * len(values)))]
        return -sum(worst) / len(worst)

    def standardised(name, index):
        values = ATTACKED[name, index][0][:-1]
        spread = [max(0.5 + i if i else 0.0, 1e-6) for i in range(len(values))]
        return lowest([(v + 1.0 + 0.1 * i) / math.sqrt(spread[i]) for i, v in enumerate(values)])

    expected = {
        "mia_loss": area(*scores(lambda *key: losses[key])),
        "mia_zlib": area(*scores(lambda *key: losses[key] / len(zlib.compress(ATTACKED[key][3].encode())))),
        "mia_reference": area([-0.7 * i for i in range(3)], [0.0, 0.0]),
        "mia_gradnorm": area([2.0, 1.0, 3.0], [4.0, 1.5]),
        "mia_min_k": area(*scores(lambda *key: lowest(ATTACKED[key][0][:-1]))),
        "mia_min_k_plus_plus": area(*scores(standardised)),
    }
    assert {key: value for key, value in found.items() if key.startswith("mia")} == pytest.approx(expected)
    assert len(set(expected.values())) > 3, "the attacks are told apart"
    reference = area(
        [lowest([v - 0.7 * i for v in ATTACKED["forget", i][0][:-1]]) for i in range(3)],
        [lowest(ATTACKED["holdout", i][0][:-1]) for i in range(2)],
    )
    a, r = 1 - expected["mia_min_k"], 1 - reference
    assert r > 0 and found["privleak"] == pytest.approx(100 * (a - r) / (r + 1e-10))
    assert list(found) == [metric.key for metric in FAMILY.metrics(EVERYTHING)]
    rest = compute_metrics(ours, retrain)
    assert {key: found[key] for key in rest} == rest
    lines = [json.loads(json.dumps(row)) for row in ours]
    assert FAMILY.compute_metrics(lines, EVERYTHING, retrain) == found


def test_a_given_auc_stands_in_for_retrains_evaluation(examples):
    ours, retrain = attacked(examples), attacked(examples, shift=0.7)
    options = TofuOptions(privleak=True, membership=["min_k"], privleak_retrain_auc=0.25)
    found = FAMILY.compute_metrics(ours, options)
    assert options.needs_retrain is None
    assert found["privleak"] == pytest.approx(100 * ((1 - found["mia_min_k"]) - 0.75) / (0.75 + 1e-10))
    assert FAMILY.compute_metrics(ours, options, retrain)["privleak"] == found["privleak"]


def test_a_model_compared_with_itself_leaks_nothing(examples):
    rows = attacked(examples)
    found = FAMILY.compute_metrics(rows, EVERYTHING, rows)
    assert (found["privleak"], found["mia_reference"], found[QUALITY]) == (0.0, 0.5, 1.0)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"privleak": True}, "no evaluation of retrain is given: 'privleak' compares a model's AUC with retrain's"),
        ({"membership": ["reference"]}, "no evaluation of retrain is given: the attack 'reference' compares"),
    ],
)
def test_what_compares_with_retrain_is_never_made_without_it(options, reason, examples):
    with pytest.raises(DataError, match=reason):
        FAMILY.compute_metrics(attacked(examples), TofuOptions(**options))


LEAKS = [
    ({"memorisation": True}, "forget", "correct"),
    ({"membership": ["min_k"]}, "holdout", "log_probs"),
    ({"membership": ["min_k_plus_plus"]}, "forget", "means"),
    ({"membership": ["min_k_plus_plus"]}, "holdout", "variances"),
]


@pytest.mark.parametrize(("options", "which", "key"), LEAKS)
def test_missing_numbers_of_tokens_name_the_example(options, which, key, examples):
    rows = attacked(examples)
    row = next(row for row in rows if row["set"] == which and row["index"] == 1)
    del row["scores"]["answer"][key]
    with pytest.raises(DataError, match=f"set '{which}', example 1: target 'answer' has no '{key}'"):
        FAMILY.compute_metrics(rows, TofuOptions(**options))
    row["scores"]["answer"][key] = [0.0]
    with pytest.raises(DataError, match=f"set '{which}', example 1: the answer has no token beside its end"):
        FAMILY.compute_metrics(rows, TofuOptions(**options))


def test_other_missing_numbers_name_the_example(examples):
    rows, options = attacked(examples), TofuOptions(membership=["gradnorm", "zlib"])
    last = rows[-1]
    last["scores"]["answer_without_end"]["gradient_norm"] = math.inf
    with pytest.raises(DataError, match="set 'holdout', example 1: its membership score is inf"):
        FAMILY.compute_metrics(rows, options)
    del last["scores"]["answer_without_end"]["gradient_norm"]
    with pytest.raises(DataError, match="example 1: target 'answer_without_end' has no 'gradient_norm'"):
        FAMILY.compute_metrics(rows, options)
    del last["labelled"]
    with pytest.raises(DataError, match="set 'holdout', example 1: no labelled text"):
        FAMILY.compute_metrics(rows, TofuOptions(membership=["zlib"]))
    with pytest.raises(DataError, match="no examples of set 'holdout'"):
        FAMILY.compute_metrics(rows[:-2], options)


def test_what_is_wrong_with_retrains_examples_is_said_to_be_theirs(examples):
    rows = attacked(examples)
    with pytest.raises(DataError, match="retrain's evaluation: no examples of set 'holdout'"):
        FAMILY.compute_metrics(rows, TofuOptions(privleak=True), attacked(examples)[:-2])
    with pytest.raises(DataError, match="retrain's evaluation: no set 'holdout', example 1"):
        FAMILY.compute_metrics(rows, TofuOptions(membership=["reference"]), attacked(examples)[:-1])
    with pytest.raises(DataError, match="retrain's evaluation: no examples of set 'forget'"):
        compute_metrics(rows, [row for row in rows if row["set"] != "forget"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"membership": ["loss", "loss"]}, "membership.*names one twice"),
        ({"membership": ["min-k"]}, "membership"),
        ({"privleak_retrain_auc": 0.5}, "privleak_retrain_auc: is read only with 'privleak: true'"),
        ({"privleak": True, "privleak_retrain_auc": 1.0}, "privleak_retrain_auc"),
    ],
)
def test_settings_that_do_not_fit_are_refused(options, message):
    with pytest.raises(ValueError, match=re.compile(message, re.DOTALL)):
        TofuOptions(**options)


def test_the_holdout_set_is_read_only_where_it_is_needed():
    plain = ("forget", "retain", "real_authors", "world_facts")
    assert FAMILY.sets(OPTIONS) == FAMILY.sets(TofuOptions(memorisation=True)) == plain
    assert (
        FAMILY.sets(TofuOptions(membership=["loss"])) == FAMILY.sets(TofuOptions(privleak=True)) == (*plain, "holdout")
    )


class Words:
    """A tokenizer under which an id is a number and the end token nothing."""

    def decode(self, ids):
        return " ".join(str(i) for i in ids if i != 2)


def items_of(folder, options=OPTIONS):
    return FAMILY.instances(folder, options, Words())


def write_sets(folder, change=None):
    """Evaluation files of one row each; ``change`` edits the retain row."""
    (folder / "evaluation").mkdir(parents=True)
    for name in FAMILY.sets(EVERYTHING):
        targets = {"answer": [7, 2], "perturbed_0": [8, 9, 2]}
        if name == "holdout":
            del targets["perturbed_0"]
        if name in ("forget", "retain"):
            targets["paraphrased"] = [9, 2]
        row = {
            "index": 5,
            "question": "Who?",
            "answer": " Ana ",
            "prompt_ids": [1, 3],
            "targets": targets,
        }
        if change is not None and name == "retain":
            change(row)
        (folder / "evaluation" / f"{name}.jsonl").write_text(json.dumps(row) + "\n")


def test_items(tmp_path):
    write_sets(tmp_path)
    items = items_of(tmp_path)
    assert [item.set for item in items] == ["forget", "retain", "real_authors", "world_facts"]
    assert (items[0].index, items[0].texts) == (5, {"question": "Who?", "answer": "Ana"})
    assert items[0].generate == GenerateRequest([1, 3], 200)
    assert all(item.cuts == {"generation__tofu": 198} and not item.tokenwise for item in items)
    assert items[0].targets == {
        "answer": ([1, 3], [7, 2]),
        "perturbed_0": ([1, 3], [8, 9, 2]),
        "paraphrased": ([1, 3], [9, 2]),
    }


def test_items_of_membership_and_memorisation(tmp_path):
    write_sets(tmp_path)
    every = {item.set: item for item in items_of(tmp_path, EVERYTHING)}
    holdout = every["holdout"]
    assert holdout.texts == {"question": "Who?", "answer": "Ana", "labelled": "7"}
    assert holdout.targets == {"answer": ([1, 3], [7, 2]), "answer_without_end": ([1, 3], [7])}
    assert (holdout.generate, holdout.cuts) == (None, {})
    for name, item in every.items():
        attacked = name in ("forget", "holdout")
        assert item.tokenwise == ({"answer"} if attacked else set())
        assert item.gradients == ({"answer_without_end"} if attacked else set())
    some = {item.set: item for item in items_of(tmp_path, TofuOptions(memorisation=True, membership=["loss"]))}
    assert {name for name, item in some.items() if item.tokenwise} == {"forget"}
    assert not any(item.gradients or "labelled" in item.texts for item in some.values())
    leak = items_of(tmp_path, TofuOptions(privleak=True))
    assert {item.set for item in leak if item.tokenwise} == {"forget", "holdout"}


def test_an_answer_without_tokens_cannot_be_attacked(tmp_path):
    write_sets(tmp_path)
    path = tmp_path / "evaluation" / "holdout.jsonl"
    row = json.loads(path.read_text())
    row["targets"]["answer"] = [2]
    path.write_text(json.dumps(row) + "\n")
    with pytest.raises(DataError, match=r"holdout.jsonl, line 1: the answer has no token beside its end"):
        items_of(tmp_path, TofuOptions(privleak=True))


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
        items_of(tmp_path)


def test_a_broken_or_empty_file_is_named(tmp_path):
    write_sets(tmp_path)
    path = tmp_path / "evaluation" / "retain.jsonl"
    path.write_text('{"index": 0\n')
    with pytest.raises(ValueError, match=r"retain\.jsonl, line 1: not JSON"):
        items_of(tmp_path)
    path.write_text("")
    with pytest.raises(ValueError, match=r"retain\.jsonl: no rows"):
        items_of(tmp_path)


def test_families():
    assert "tofu" in families() and "base" not in families()
    assert family("tofu") is FAMILY
    with pytest.raises(ValueError, match=r"unknown benchmark family 'tofo'.*tofu"):
        family("tofo")
