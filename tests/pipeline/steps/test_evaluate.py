"""The evaluate step on prepared data, with an engine that stands for a model."""

import json
import math
import shutil
import zlib
from contextlib import contextmanager

import pytest
import yaml

from megatron_ext.inference.scoring import Score, ScoreRequest
from megatron_ext.schema.safe_yaml import Loader
from pipeline.__main__ import main as program
from pipeline.benchmarks import megatron_lm as engine
from pipeline.benchmarks.tofu.evaluate import FAMILY
from pipeline.benchmarks.tofu.options import TofuOptions
from pipeline.benchmarks.tofu.synthetic import SyntheticSource
from pipeline.config.load import CONFIGS
from pipeline.data.errors import DataError
from pipeline.data.json_files import read_rows
from pipeline.data.settings import BpeTokenizer, FolderTokenizer
from pipeline.data.tokenizer import Tokenizer
from pipeline.specs import EvaluateSpec, PrepareSpec
from pipeline.steps import evaluate as step
from pipeline.steps.prepare import prepare

CONFIG = yaml.load((CONFIGS / "models" / "mini-llama.yaml").read_text(), Loader)["architecture"]
OPTIONS = TofuOptions()
SETS = FAMILY.sets(OPTIONS)
SOURCE = SyntheticSource(authors=10, questions_per_author=4, background_authors=0)


class Engine(engine.Engine):
    """Scores by a checksum of the ids and ``seed``; answers from the prepared rows, unless it is ``silent``."""

    def __init__(self, data, seed=0, rank=0, silent=False, change=lambda scores: scores):
        super().__init__(rank, Tokenizer.load(data / "tokenizer"), 0)
        self.seed, self.change, self.calls = seed, change, []
        rows = [row for name in SETS for row in read_rows(data / "evaluation" / f"{name}.jsonl")]
        self.known = {tuple(row["prompt_ids"]): row["targets"]["answer"][:-1] for row in rows}
        self.silent = silent

    def find_scores(self, requests):
        self.calls.append([(r.prompt, r.target) for r in requests])
        sums = [zlib.crc32(json.dumps([self.seed, r.prompt, r.target]).encode()) for r in requests]
        scores = [
            Score(-len(r.target) * (0.1 + total / 2**31), len(r.target), False)
            for total, r in zip(sums, requests, strict=True)
        ]
        return self.change(scores)

    def find_continuations(self, requests):
        return [[] if self.silent else self.known[tuple(r.prompt)][: r.max_new_tokens] for r in requests]

    def gradient_norms(self, requests):
        raise AssertionError("no attack that needs gradients is asked for")

    @contextmanager
    def open(self, checkpoint, runtime, tokenizer, budgets, answers):
        config = read(checkpoint / "config.json")
        self.context = config["max_position_embeddings"]
        yield self


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("prepared")
    told = {"family": "tofu", "source": SOURCE, "forget_split": "forget10", "sets": list(SETS)}
    prepare(PrepareSpec(**told, tokenizer=BpeTokenizer(vocab_size=400), max_length=200, output=folder))
    return folder


@pytest.fixture
def checkpoint(data, tmp_path):
    """What of a checkpoint the step itself reads: its config and its tokenizer."""
    shutil.copytree(data / "tokenizer", tmp_path / "checkpoint")
    (tmp_path / "checkpoint" / "config.json").write_text(json.dumps({**CONFIG, "vocab_size": 400}))
    return tmp_path / "checkpoint"


@pytest.fixture
def run(data, checkpoint, tmp_path):
    """Evaluate ``model`` with an engine made from the other arguments; returns its folder and engine."""

    def run(model, spec=None, **engine):
        told = {"benchmark": "mini", "split": "forget10", "checkpoint": checkpoint, "data": data, "model_id": model}
        told = EvaluateSpec(**{"options": OPTIONS, **told, "output": tmp_path / model, **(spec or {})})
        made = Engine(data, **engine)
        step.evaluate(told, open_engine=made.open)
        return told.output, made

    return run


def read(path):
    return json.loads(path.read_text(encoding="utf-8"))


def test_retrain(run, data):
    folder, engine = run("retrain", {"seed": 3})
    found, summary = read(folder / "evaluation.json"), read(folder / "summary.json")
    named = {key: found[key] for key in ("schema", "model", "benchmark", "split", "seed")}
    assert named == {"schema": 2, "model": "retrain", "benchmark": "mini", "split": "forget10", "seed": 3}
    values = found["metrics"]
    assert list(values) == [metric.key for metric in FAMILY.metrics(OPTIONS)]
    assert values["forget_quality"] == 1.0  # compared with itself
    assert values["forget_rouge"] == values["world_facts_rouge"] == 1.0
    assert found["settings"]["examples"] == {"forget": 4, "retain": 36, "real_authors": 40, "world_facts": 50}
    manifest = read(data / "manifest.json")
    for name, sha in found["settings"]["data_sha256"].items():
        assert sha == manifest["evaluation"][name]["sha256"]
    assert summary["flags"] == [] and summary["empty_generations"] == 0
    assert all(summary[f"{part}_seconds"] >= 0 for part in ("startup", "work", "write"))
    assert summary["scored_sequences"] == len(engine.calls[0]) > 4 * 6
    assert sorted(path.name for path in folder.iterdir()) == ["evaluation.json", "examples.jsonl", "summary.json"]


def test_examples_hold_the_raw_results(run, data):
    folder, engine = run("target")
    examples = read_rows(folder / "examples.jsonl")
    assert len(examples) == 130
    row, example = read_rows(data / "evaluation" / "forget.jsonl")[1], examples[1]
    assert (example["set"], example["index"], example["question"]) == ("forget", 1, row["question"])
    assert example["generation"] == example["answer"] == row["answer"]
    assert example["scores"].keys() == row["targets"].keys() >= {"answer", "paraphrased", "perturbed_0"}
    for name, target in row["targets"].items():
        (score,) = Engine(data).score([ScoreRequest(row["prompt_ids"], target)])
        raw = {"log_prob": score.log_prob, "tokens": len(target), "avg_loss": -score.log_prob / len(target)}
        assert example["scores"][name] == raw
        assert (row["prompt_ids"], target) in engine.calls[0]


def test_metrics_are_computed_again_from_the_examples(run, capsys):
    retrain, _ = run("retrain")
    # All answers equally likely: every truth ratio is 1, and at least half of retrain's lie on one side of it.
    unlearned, _ = run(
        "npo", {"retain_evaluation": retrain}, change=lambda scores: [Score(0.0, s.tokens, False) for s in scores]
    )
    target, _ = run("target", seed=2)
    recorded = read(unlearned / "evaluation.json")["metrics"]
    assert 0 < recorded["forget_quality"] < 1
    again = FAMILY.compute_metrics(
        read_rows(unlearned / "examples.jsonl"), OPTIONS, read_rows(retrain / "examples.jsonl")
    )
    assert again == recorded
    program(["metrics", str(unlearned / "examples.jsonl"), "--retain", str(retrain / "examples.jsonl")])
    assert json.loads(capsys.readouterr().out) == recorded
    program(["metrics", str(target / "examples.jsonl")])
    assert json.loads(capsys.readouterr().out) == read(target / "evaluation.json")["metrics"]


def test_forget_quality_is_absent_without_retrain(run):
    folder, _ = run("target")
    assert "forget_quality" not in read(folder / "evaluation.json")["metrics"]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("benchmark", "tofu"),
        ("split", "forget05"),
        ("settings.options.family", "muse"),
        ("settings.data_sha256.forget", "0" * 64),
    ],
)
def test_another_retain_evaluation_is_refused(run, key, value):
    retrain, _ = run("retrain")
    found = read(retrain / "evaluation.json")
    *parents, last = key.split(".")
    part = found
    for name in parents:
        part = part[name]
    part[last] = value
    (retrain / "evaluation.json").write_text(json.dumps(found))
    with pytest.raises(DataError, match=rf"retrain/evaluation\.json: {key}.*{value!r}"):
        run("npo", {"retain_evaluation": retrain})


def test_other_retain_examples_are_refused(run):
    retrain, _ = run("retrain")
    lines = (retrain / "examples.jsonl").read_text().splitlines()
    (retrain / "examples.jsonl").write_text("\n".join(lines[:-1]))
    with pytest.raises(DataError, match=r"examples\.jsonl: not the examples that .*evaluation\.json was computed from"):
        run("npo", {"retain_evaluation": retrain})


def test_a_retain_evaluation_that_is_missing_is_named(run, tmp_path):
    with pytest.raises(DataError, match=r"nowhere/evaluation\.json: cannot be read"):
        run("npo", {"retain_evaluation": tmp_path / "nowhere"})


def test_an_evaluation_that_has_begun_leaves_no_record_of_an_older_one(run, tmp_path):
    """A folder with a record is complete."""
    (tmp_path / "target").mkdir()
    (tmp_path / "target" / "evaluation.json").write_text("{}")
    with pytest.raises(DataError):
        run("target", {"retain_evaluation": tmp_path / "none"})
    assert not (tmp_path / "target" / "evaluation.json").exists()


def test_changed_data_are_refused(data, run, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(data, copy)
    path = copy / "evaluation" / "retain.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[1:]))
    with pytest.raises(DataError, match=r"manifest\.json: evaluation\.retain\.sha256 is"):
        run("target", {"data": copy})
    with pytest.raises(DataError, match=r"manifest\.json: forget_split is 'forget10'.*'forget05'"):
        run("target", {"split": "forget05"})


@pytest.mark.parametrize(("log_prob", "lacking"), [(math.nan, 0), (-math.inf, 0), (-1.0, 1)])
def test_a_bad_score_names_the_example_and_nothing_is_written(run, data, tmp_path, log_prob, lacking):
    first = json.loads((data / "evaluation" / "forget.jsonl").read_text().splitlines()[0])
    tokens = len(first["targets"]["answer"])
    bad = Score(log_prob, tokens - lacking, False)
    with pytest.raises(DataError, match=f"set 'forget', example 0: target 'answer' of {tokens} tokens was given"):
        run("target", change=lambda scores: [bad, *scores[1:]])
    assert not (tmp_path / "target").exists()


def test_a_missing_score_is_an_error(run):
    with pytest.raises(ValueError, match="scores were computed for"):
        run("target", change=lambda scores: scores[:-1])


def test_a_silent_model_is_flagged(run, capsys):
    folder, _ = run("ga", silent=True)
    summary = read(folder / "summary.json")
    assert summary["flags"] == ["collapsed"]
    assert (summary["empty_generations"], summary["repetitive_generations"]) == (36, 0)
    assert len(summary["collapsed_because"]) == 2
    assert read(folder / "evaluation.json")["metrics"]["model_utility"] == 0.0
    assert "ga has collapsed: 36 of 36 retain questions" in capsys.readouterr().err


def test_answers_that_the_context_cut_short_are_counted(run, data, checkpoint):
    rows = [row for name in SETS for row in read_rows(data / "evaluation" / f"{name}.jsonl")]
    lengths = [len(row["prompt_ids"]) + len(row["targets"]["answer"]) - 1 for row in rows]
    config = {**CONFIG, "vocab_size": 400, "max_position_embeddings": max(lengths)}
    (checkpoint / "config.json").write_text(json.dumps(config))
    summary = read(run("target")[0] / "summary.json")
    assert summary["cut_generations"] == lengths.count(max(lengths)) > 0
    assert read(run("target", {"options": TofuOptions(max_new_tokens=1)})[0] / "summary.json")["cut_generations"] == 0


def test_a_model_with_another_vocabulary_is_refused(run, data, checkpoint):
    size = Tokenizer.load(data / "tokenizer").vocab_size
    (checkpoint / "config.json").write_text(json.dumps({**CONFIG, "vocab_size": size - 1}))
    with pytest.raises(
        DataError, match=rf"checkpoint/config\.json: vocab_size is {size - 1}, .*tokenizer has {size} ids"
    ):
        run("target")


def test_a_special_token_beyond_the_vocabulary_is_no_fault_where_no_text_has_it(run, data, checkpoint):
    """As the place of an image in Gemma 3's tokenizer."""
    size = Tokenizer.load(data / "tokenizer").vocab_size
    for folder in (data / "tokenizer", checkpoint):
        path = folder / "tokenizer.json"
        own = read(path)
        token = {"id": size, "content": "<image_soft_token>", "special": True, "normalized": False}
        own["added_tokens"].append({**token, "single_word": False, "lstrip": False, "rstrip": False})
        path.write_text(json.dumps(own))
    assert Tokenizer.load(data / "tokenizer").vocab_size == size + 1
    (checkpoint / "config.json").write_text(json.dumps({**CONFIG, "vocab_size": size}))
    run("target")


def test_a_model_with_another_tokenizer_is_refused(run, data, checkpoint):
    path = checkpoint / "tokenizer.json"
    own = read(path)
    path.write_text(json.dumps({**own, "truncation": None, "padding": None}, indent=4))
    run("target")  # the same, written by another program
    first, second = [token for token, number in own["model"]["vocab"].items() if number in (300, 301)]
    vocabulary = own["model"]["vocab"]
    vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]
    path.write_text(json.dumps(own))
    with pytest.raises(DataError, match=r"checkpoint: its tokenizer is not that of .*/tokenizer"):
        run("target")
    path.unlink()
    run("target")  # a checkpoint without a tokenizer is taken at its vocabulary's word


def test_other_ranks_write_nothing(run, tmp_path):
    run("target", rank=1)
    assert not (tmp_path / "target").exists()


def test_the_program_names_what_is_wrong(data, tmp_path):
    told = {"benchmark": "mini", "split": "forget05", "checkpoint": "none", "data": str(data), "model_id": "target"}
    path = tmp_path / "spec.yaml"
    path.write_text(yaml.safe_dump({**told, "options": {"family": "tofu"}, "output": str(tmp_path / "out")}))
    with pytest.raises(SystemExit, match=r"evaluate: error: .*manifest\.json: forget_split is 'forget10'"):
        step.main([str(path)])


@pytest.mark.slow
def test_a_real_model(shared_data, tmp_path, capsys):
    """The whole step with Megatron on one rank, with a model that knows no author."""
    checkpoint = shared_data / "models" / "stories260K"
    if not checkpoint.is_dir():
        pytest.skip(f"{checkpoint} is absent")
    tokenizer = FolderTokenizer(path=checkpoint)
    data = tmp_path / "data"
    source = SyntheticSource(authors=2, questions_per_author=2, background_authors=0)
    of = {"family": "tofu", "source": source, "forget_split": "forget10", "sets": list(SETS)}
    prepare(PrepareSpec(**of, tokenizer=tokenizer, max_length=400, output=data))
    told = {"benchmark": "mini", "split": "forget10", "checkpoint": str(checkpoint), "data": str(data)}
    told |= {"options": {"family": "tofu", "max_new_tokens": 12}}
    told |= {"model_id": "retrain", "output": str(tmp_path / "out")}
    (tmp_path / "spec.yaml").write_text(yaml.safe_dump({**told, "runtime": {"device": "cpu"}}))
    step.main([str(tmp_path / "spec.yaml")])
    found = read(tmp_path / "out" / "evaluation.json")["metrics"]
    assert found["forget_quality"] == 1.0
    assert 0 < found["forget_probability"] < 0.1
    examples = read_rows(tmp_path / "out" / "examples.jsonl")
    assert any(example["generation"] for example in examples)
    lengths = [len(Tokenizer.load(checkpoint).encode(example["generation"], special=False)) for example in examples]
    assert max(lengths) <= 14  # 12 tokens, give or take how their text splits again
    assert "evaluate: retrain: Forget quality 1, Model utility" in capsys.readouterr().err
