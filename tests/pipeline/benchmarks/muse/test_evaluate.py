"""MUSE's metrics from raw results, against the formulas written out here; and what a model is asked."""

from __future__ import annotations

import json
import math
import re
import zlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from megatron_ext.inference.generation import GenerateRequest
from megatron_ext.inference.scoring import Score, ScoreRequest, Tokenwise
from pipeline.benchmarks.muse.evaluate import FAMILY
from pipeline.benchmarks.muse.options import MuseOptions
from pipeline.benchmarks.muse.requests import STOPS
from pipeline.data.errors import DataError

ATTACKS = ["loss", "zlib", "reference", "gradnorm", "min_k", "min_k_plus_plus"]
EVERYTHING = MuseOptions(membership=ATTACKS, privleak_tokens=5, shorten_few_shot=True)
PLAIN = MuseOptions(memorisation=False, privleak=False)
# Of forget and holdout texts: the log-probabilities of their tokens, how many tokens there are, the gradient's norm.
TEXTS = {
    ("privleak_forget", 0): ([-0.1, -0.2, -3.0, -0.4, -0.5, -9.0], 6, 2.0),
    ("privleak_forget", 1): ([-1.0, -2.0, -0.5, -0.1], 4, 1.0),
    ("privleak_forget", 2): ([-2.5, -0.1, -0.1, -4.0, -1.0], 9, 3.0),  # the context holds 5 of its 9 tokens
    ("privleak_holdout", 0): ([-1.5, -2.5, -0.1], 3, 4.0),
    ("privleak_holdout", 1): ([-1.0, -1.0, -1.0, -1.0, -7.0, -7.0, -7.0], 7, 1.5),
}
CORRECT = {0: [1, 0, 1, 1, 1, 0], 1: [0, 0, 1]}


def made(shift: float = 0.0) -> list[dict[str, Any]]:
    """Raw results of a model; with ``shift``, of one that finds the later forget texts less likely."""
    rows: list[dict[str, Any]] = [
        said("verbmem", 0, "the cats sat here", gt="The cat sat", gt__muse="The cat"),
        said("verbmem", 1, "", gt="Nothing more", gt__muse="Nothing"),
        said("knowmem_forget", 0, "Ana", answer="Ana Lima", shots=2, shots_known=2),
        said("knowmem_retain", 0, "Ana Lima", answer="Ana Lima", shots=1, shots_known=2),
        said("knowmem_retain", 1, "in March", answer="March", shots=2, shots_known=2),
    ]
    for row in rows[:2]:
        row["scores"]["gt"] = {"correct": [bool(value) for value in CORRECT[row["index"]]]}
    for (name, index), (log_probs, length, norm) in TEXTS.items():
        lower = shift * index if name == "privleak_forget" else 0.0
        text = {
            "log_probs": [value - lower for value in log_probs],
            "tokens": len(log_probs),
            "means": [-1.0 - 0.1 * i for i in range(len(log_probs))],
            "variances": [0.5 + i if i else 0.0 for i in range(len(log_probs))],
        }
        scores = {"text": text, "text_without_last": {"gradient_norm": norm}}
        row = {"set": name, "index": index, "text_tokens": length, "labelled": f"{name} " * index, "scores": scores}
        rows.append({**row, "generation": None})
    return rows


def said(name: str, index: int, generation: str, **texts: Any) -> dict[str, Any]:
    return {"set": name, "index": index, "generation": generation, "scores": {}, **texts}


def f1(common: int, said: int, true: int) -> float:
    return 2 * (common / said) * (common / true) / (common / said + common / true)


def area(forget: list[float], holdout: list[float]) -> float:
    """How often a holdout text's score is the higher one."""
    wins = [1.0 if h > f else 0.5 if h == f else 0.0 for f in forget for h in holdout]
    return sum(wins) / len(wins)


def lowest(values: list[float], least: int = 1) -> float:
    worst = sorted(values)[: max(least, int(0.4 * len(values)))]
    return -sum(worst) / len(worst)


def areas(score: Any) -> float:
    return area(*([score(*key) for key in TEXTS if key[0] == name] for name in ("privleak_forget", "privleak_holdout")))


def read(key: tuple[str, int]) -> list[float]:
    """The first 5 tokens of a text, or as many as it has."""
    return TEXTS[key][0][:5]


def without_last(key: tuple[str, int]) -> list[float]:
    return TEXTS[key][0][: min(TEXTS[key][1], 5) - 1]


def test_every_metric_by_hand() -> None:
    ours, retrain = made(), made(shift=0.7)
    found = FAMILY.compute_metrics(ours, EVERYTHING, retrain)

    def standardised(*key: Any) -> float:
        values = without_last(key)
        spread = [max(0.5 + i if i else 0.0, 1e-6) for i in range(len(values))]
        return lowest([(v + 1.0 + 0.1 * i) / math.sqrt(spread[i]) for i, v in enumerate(values)])

    def of_retrain(score: Any, tokens: Any) -> float:
        """The area of a score of Retrain's log-probabilities of the tokens that ``tokens`` takes."""

        def shifted(name: str, index: int) -> float:
            lower = 0.7 * index if name == "privleak_forget" else 0.0
            return score([value - lower for value in tokens((name, index))])

        return areas(shifted)

    loss = {key: -sum(read(key)) / len(read(key)) for key in TEXTS}
    text = {key: f"{key[0]} " * key[1] for key in TEXTS}
    expected = {
        "verbmem_rouge": f1(3, 4, 3) / 2,  # "cats" is "cat" to a stemmer
        "verbmem_rouge__muse": 100 * f1(1, 4, 2) / 2,
        "knowmem_forget_rouge": f1(1, 1, 2),
        "knowmem_forget_rouge__muse": 100 * f1(1, 1, 2),
        "knowmem_retain_rouge": (1 + f1(1, 2, 1)) / 2,
        "knowmem_retain_rouge__muse": 100 * (1 + f1(1, 2, 1)) / 2,
        # without the last token: 5 tokens of which 3 at the end are right; 2 of which none is
        "extraction_strength": (3 / 5 + 1 / 2) / 2,
        "exact_memorisation": (4 / 5 + 0) / 2,
        "mia_loss": areas(lambda *key: loss[key]),
        "mia_zlib": areas(lambda *key: loss[key] / len(zlib.compress(text[key].encode()))),
        "mia_reference": area([0.0, -0.7, -1.4], [0.0, 0.0]),
        "mia_gradnorm": area([2.0, 1.0, 3.0], [4.0, 1.5]),
        "mia_min_k": areas(lambda *key: lowest(without_last(key))),
        "mia_min_k_plus_plus": areas(standardised),
        "empty_generations": 0,
        "repetitive_generations": 0,
        "shortened_prompts": 1,
        "cut_texts": 1,
    }
    a, r = 1 - expected["mia_min_k"], 1 - of_retrain(lowest, without_last)
    expected["privleak"] = 100 * (a - r) / (r + 1e-10)
    # MUSE's code: how often the holdout text is the likelier one, over all tokens
    a = 1 - areas(lambda *key: lowest(TEXTS[key][0], least=0))
    r = 1 - of_retrain(lambda values: lowest(values, least=0), lambda key: TEXTS[key][0])
    expected["privleak__muse"] = 100 * (a - r) / r
    assert found == pytest.approx(expected)
    assert found["privleak"] != pytest.approx(found["privleak__muse"])
    assert len({found[f"mia_{attack}"] for attack in ATTACKS}) > 3, "the attacks are told apart"
    assert list(found) == [metric.key for metric in FAMILY.metrics(EVERYTHING)]
    lines = [json.loads(json.dumps(row)) for row in ours]
    assert FAMILY.compute_metrics(lines, EVERYTHING, retrain) == found


def test_what_a_further_request_adds_is_measured_by_itself() -> None:
    """Only this has a later request's set: its values are VerbMem's on the same rows; no way is better."""
    examples = made()
    options = EVERYTHING.model_copy(update={"requests": 2})
    asked = [{**one, "set": "request_2"} for one in examples if one["set"] == "verbmem"]
    assert FAMILY.sets(options)[-1] == "request_2" and "request_2" in FAMILY.to_forget(options)
    found = FAMILY.compute_metrics([*examples, *asked], options, made(shift=0.7))
    keys = ("verbmem_rouge", "extraction_strength", "exact_memorisation")
    assert {key: value for key, value in found.items() if "request_2" in key} == {
        f"request_2_{key}": found[key] for key in keys
    }
    metrics = {metric.key: metric for metric in FAMILY.metrics(options) if "request_2" in metric.key}
    assert {(metric.better, metric.evidence) for metric in metrics.values()} == {(None, "knowledge")}
    assert metrics["request_2_exact_memorisation"].title == "Request 2 Exact memorisation"
    assert "passages of request 2" in metrics["request_2_exact_memorisation"].definition
    assert [metric.headline for metric in metrics.values()] == [True, False, False]


def test_only_what_is_asked_for_is_reported() -> None:
    keys = [metric.key for metric in FAMILY.metrics(PLAIN)]
    assert list(FAMILY.compute_metrics(made()[:5], PLAIN)) == keys
    assert keys[-2:] == ["empty_generations", "repetitive_generations"] and len(keys) == 8
    assert FAMILY.sets(PLAIN) == ("verbmem", "knowmem_forget", "knowmem_retain")
    assert FAMILY.sets(EVERYTHING)[3:] == ("privleak_forget", "privleak_holdout")
    headline = [metric.key for metric in FAMILY.metrics(MuseOptions()) if metric.headline]
    assert headline == ["verbmem_rouge", "knowmem_forget_rouge", "knowmem_retain_rouge", "privleak"]
    for metric in FAMILY.metrics(EVERYTHING):
        assert re.fullmatch("[a-z0-9_]+", metric.key) and metric.title and metric.definition and metric.source
    assert {key for pair in FAMILY.trade_offs(PLAIN) for key in pair} < set(keys)


def test_privleak_is_never_made_without_retrains_value() -> None:
    with pytest.raises(DataError, match="no evaluation of retrain is given: 'privleak' compares a model's AUC"):
        FAMILY.compute_metrics(made(), MuseOptions())
    with pytest.raises(DataError, match="no evaluation of retrain is given: the attack 'reference'"):
        FAMILY.compute_metrics(made(), MuseOptions(privleak=False, membership=["reference"]))
    assert EVERYTHING.without_retrain().needs_retrain is None
    with pytest.raises(DataError, match="retrain's evaluation: no examples of set 'privleak_holdout'"):
        FAMILY.compute_metrics(made(), MuseOptions(), made()[:-2])
    with pytest.raises(DataError, match="retrain's evaluation: no set 'privleak_holdout', example 1"):
        FAMILY.compute_metrics(made(), MuseOptions(privleak=False, membership=["reference"]), made()[:-1])


def test_a_given_auc_stands_in_for_retrains_evaluation() -> None:
    """MUSE's constant for News is 0.4772, of an AUC the other way round."""
    options = MuseOptions(privleak_retrain_auc=1 - 0.4772)
    perfect = made()
    for row in perfect:
        if "text_tokens" in row:
            row["scores"]["text"]["log_probs"] = [-0.1 if row["set"] == "privleak_forget" else -2.0] * 6
    found = FAMILY.compute_metrics(perfect, options)
    assert (found["privleak"], found["privleak__muse"]) == (pytest.approx(-100), pytest.approx(-100))
    for row in perfect:
        if "text_tokens" in row:
            row["scores"]["text"]["log_probs"] = [-2.0 if row["set"] == "privleak_forget" else -0.1] * 6
    found = FAMILY.compute_metrics(perfect, options)
    assert found["privleak__muse"] == pytest.approx(100 * (1 - 0.4772) / 0.4772)  # 109.6, MUSE's greatest for News
    rows = made()
    assert FAMILY.compute_metrics(rows, MuseOptions(), rows)["privleak"] == 0.0


def test_collapse() -> None:
    rows = made()[:5]
    assert FAMILY.collapse(rows, PLAIN, FAMILY.compute_metrics(rows, PLAIN)) == []
    rows[3]["generation"], rows[4]["generation"] = "", "March " * 40
    found = FAMILY.compute_metrics(rows, PLAIN)
    assert (found["empty_generations"], found["repetitive_generations"]) == (1, 1)
    reasons = FAMILY.collapse(rows, PLAIN, found)
    assert reasons == ["2 of 2 retain questions have an empty answer or one that repeats itself"]
    rows[4]["generation"] = "never"
    reasons = FAMILY.collapse(rows, PLAIN, FAMILY.compute_metrics(rows, PLAIN))
    assert reasons == ["KnowMem of the retain set is 0"]


@pytest.mark.parametrize(
    ("options", "place", "key", "message"),
    [
        ({}, 0, "gt", "set 'verbmem', example 0: target 'gt' has no 'correct'"),
        ({}, 5, "log_probs", "set 'privleak_forget', example 0: target 'text' has no 'log_probs'"),
        ({"membership": ["min_k_plus_plus"]}, 6, "means", "example 1: target 'text' has no 'means'"),
        ({"membership": ["zlib"]}, 6, "labelled", "set 'privleak_forget', example 1: no labelled text"),
        ({"membership": ["gradnorm"]}, 6, "text_without_last", "example 1: target 'text_without_last' has no"),
    ],
)
def test_missing_numbers_name_the_example(options: dict[str, Any], place: int, key: str, message: str) -> None:
    rows = made()
    row = rows[place]
    if key in row and key != "gt":
        del row[key]
    elif key in row["scores"]:
        row["scores"][key] = {}
    else:
        del row["scores"]["text"][key]
    with pytest.raises(DataError, match=message):
        FAMILY.compute_metrics(rows, MuseOptions(**options), made())


def test_missing_texts_and_generations_name_the_example() -> None:
    rows = made()[:5]
    rows[1]["generation"] = None
    with pytest.raises(DataError, match="set 'verbmem', example 1: no generation"):
        FAMILY.compute_metrics(rows, PLAIN)
    del rows[0]["gt__muse"]
    rows[1]["generation"] = ""
    with pytest.raises(DataError, match="set 'verbmem', example 0: no 'gt__muse'"):
        FAMILY.compute_metrics(rows, PLAIN)
    with pytest.raises(DataError, match="no examples of set 'knowmem_retain'"):
        FAMILY.compute_metrics(made()[:3], PLAIN)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"membership": ["loss", "loss"]}, "membership.*names one twice"),
        ({"membership": ["min-k"]}, "membership"),
        ({"privleak": False, "privleak_retrain_auc": 0.5}, "privleak_retrain_auc: is read only with 'privleak: true'"),
        ({"privleak_tokens": 1}, "privleak_tokens"),
    ],
)
def test_settings_that_do_not_fit_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.compile(message, re.DOTALL)):
        MuseOptions(**options)


class Letters:
    """A tokenizer of letters, with a start token, id 1."""

    def encode(self, text: str, special: bool) -> list[int]:
        return [1] * special + [ord(letter) for letter in text]

    def decode(self, ids: list[int]) -> str:
        return "".join(chr(i) for i in ids if i != 1)


class Model:
    """Says "x" to everything, and gives every token the log-probability of its place."""

    def __init__(self, context: int) -> None:
        self.context, self.rank, self.tokenizer = context, 0, Letters()
        self.scored: list[ScoreRequest] = []
        self.continued: list[GenerateRequest] = []

    def score(self, requests: list[ScoreRequest]) -> list[Score]:
        self.scored += requests
        return [self._score(request) for request in requests]

    def _score(self, request: ScoreRequest) -> Score:
        n = len(request.target)
        log_probs = [-0.1 * i for i in range(n)]
        detail = Tokenwise(log_probs, [0.0] * n, [1.0] * n, [True] * n) if request.tokenwise else None
        return Score(sum(log_probs), n, True, detail)

    def generate(self, requests: list[GenerateRequest]) -> list[list[int]]:
        self.continued += requests
        return [[ord("x")]] * len(requests)

    def gradient_norms(self, requests: list[ScoreRequest]) -> list[float]:
        return [float(len(request.target)) for request in requests]


QA = {"index": 0, "question": "Who?", "answer": " Ana "}
SHOTS = [["When?", "Now"], ["Where?", "Here"]]
ROWS = {
    "verbmem": {"index": 0, "prompt": "Once upon", "gt": "a time there was."},
    "knowmem_forget": {**QA, "shots": SHOTS},
    "knowmem_retain": {**QA, "shots": SHOTS},
    "privleak_forget": {"index": 0, "text": "It was so."},
    "privleak_holdout": {"index": 0, "text": "It was otherwise."},
}


def asked(
    folder: Path, options: MuseOptions, context: int = 4096, change: Any = None
) -> tuple[Model, list[dict[str, Any]]]:
    (folder / "evaluation").mkdir(parents=True, exist_ok=True)
    rows = json.loads(json.dumps(ROWS))
    if change:
        change(rows)
    for name, row in rows.items():
        (folder / "evaluation" / f"{name}.jsonl").write_text(json.dumps(row) + "\n")
    model = Model(context)
    return model, FAMILY.requests(folder, options, Letters(), 2000)(model)


def ids(text: str) -> list[int]:
    return Letters().encode(text, special=True)


def test_what_is_asked(tmp_path: Path) -> None:
    options = MuseOptions(membership=["zlib", "gradnorm"], privleak_tokens=12, verbmem_new_tokens=10)
    model, examples = asked(tmp_path, options)
    before = "Question: When?\nAnswer: Now\n\nQuestion: Where?\nAnswer: Here\n\nQuestion: Who?\nAnswer: "
    questions = [GenerateRequest(ids(before), 32, STOPS)] * 2
    assert model.continued == [GenerateRequest(ids("Once upon"), 10), *questions]
    rest = ScoreRequest(ids("Once upon"), ids(" a time there was.")[1:], tokenwise=True)
    texts = [ScoreRequest([1], ids(ROWS[name]["text"])[1:], True) for name in ("privleak_forget", "privleak_holdout")]
    ends = [ScoreRequest([1], ids("It was so")[1:]), ScoreRequest([1], ids("It was othe")[1:])]
    assert model.scored == [rest, texts[0], ends[0], texts[1], ends[1]]
    verbatim, question, _, forget, holdout = examples
    assert (verbatim["gt"], verbatim["gt__muse"], verbatim["generation"]) == ("a time there was.", "a time th", "x")
    assert set(verbatim["scores"]["gt"]) == {"log_prob", "tokens", "avg_loss", "correct"}
    assert (question["answer"], question["shots"], question["shots_known"]) == ("Ana", 2, 2)
    assert set(forget["scores"]["text"]) == {"log_prob", "tokens", "avg_loss", "log_probs"}
    assert holdout["scores"]["text_without_last"]["gradient_norm"] == 11.0
    assert (forget["labelled"], holdout["labelled"], holdout["text_tokens"]) == ("It was so.", "It was other", 17)
    found = FAMILY.compute_metrics(examples, options, examples)
    assert (found["cut_texts"], found["extraction_strength"]) == (0, 1.0)
    later = {**ROWS, "request_2": ROWS["verbmem"]}
    _, [verbatim, *_, last] = asked(
        tmp_path, options.model_copy(update={"requests": 2}), change=lambda r: r.update(later)
    )
    assert last == {**verbatim, "set": "request_2"}


def test_a_text_that_the_context_does_not_hold_is_cut_and_counted(tmp_path: Path) -> None:
    options = MuseOptions(memorisation=False, shorten_few_shot=True, knowmem_new_tokens=1, verbmem_new_tokens=1)
    model, examples = asked(
        tmp_path, options, context=25, change=lambda rows: rows["privleak_forget"].update(text="ab" * 30)
    )
    assert [len(request.target) for request in model.scored] == [24, 17]
    found = FAMILY.compute_metrics(examples, options, examples)
    assert (found["cut_texts"], found["shortened_prompts"]) == (1, 2)
    assert model.continued[1].prompt == ids("Question: Who?\nAnswer: ")


@pytest.mark.parametrize(
    ("options", "context", "message"),
    [
        ({}, 110, r"knowmem_forget\.jsonl, line 1: a prompt of [0-9]+ tokens and 32 more, .* \(options\.shorten_few"),
        ({"shorten_few_shot": True}, 60, r"knowmem_forget\.jsonl, line 1: a prompt of 24 tokens and 37 more"),
        ({"verbmem_new_tokens": 90}, 99, r"verbmem\.jsonl, line 1: a prompt of 10 tokens and 90 more, but .* is 99"),
        ({"verbmem_new_tokens": 1}, 20, r"verbmem\.jsonl, line 1: a prompt of 10 tokens and 18 more, but .* is 20"),
    ],
)
def test_prompts_are_never_cut(tmp_path: Path, options: dict[str, Any], context: int, message: str) -> None:
    given = {"verbmem_new_tokens": 10, "knowmem_new_tokens": 37 if "shorten_few_shot" in options else 32, **options}
    with pytest.raises(DataError, match=message):
        asked(tmp_path, MuseOptions(**given), context)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("verbmem", {"gt": None}, r"verbmem\.jsonl, line 1: field 'gt' must be a text, got None"),
        ("knowmem_retain", {"shots": "x"}, r"knowmem_retain\.jsonl, line 1: field 'shots' must be a list, got 'x'"),
        ("privleak_holdout", {"index": "0"}, r"privleak_holdout\.jsonl, line 1: field 'index' must be a whole number"),
        ("privleak_holdout", {"text": "a"}, r"line 1: the text has fewer than 2 tokens that can be scored"),
        ("verbmem", {"gt": ""}, r"line 1: what follows the prompt has fewer than 2 tokens"),
        ("verbmem", {"prompt": "€"}, r"set 'verbmem', example 0: id 8364, but the model has 2000"),
    ],
)
def test_bad_rows_are_named(tmp_path: Path, name: str, change: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        asked(tmp_path, MuseOptions(), change=lambda rows: rows[name].update(change))


def test_an_empty_file_is_an_error(tmp_path: Path) -> None:
    asked(tmp_path, PLAIN)
    (tmp_path / "evaluation" / "verbmem.jsonl").write_text("")
    with pytest.raises(DataError, match=r"verbmem\.jsonl: no rows"):
        FAMILY.requests(tmp_path, PLAIN, SimpleNamespace(), 10)
