"""``python -m pipeline evaluate`` and ``metrics``: what they refuse, and whole runs that are killed and go on."""

from __future__ import annotations

import hashlib
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.__main__ import main
from pipeline.commands import evaluate, given_model
from pipeline.commands.options import parallel_layout
from pipeline.config.load import CONFIGS
from pipeline.config.sizing import Shape
from pipeline.data.chat_templates import template_of
from pipeline.data.templates import TEMPLATES
from pipeline.data.tokenizer import train
from pipeline.launch.specification import as_yaml
from pipeline.specs import EvaluateSpec, FetchDataSpec, FetchSpec, PrepareSpec

ROOT = Path(__file__).parents[3]
ARCHITECTURE = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "tie_word_embeddings": True,
    "initializer_range": 0.1,
}
BENCHMARK = {
    "name": "small",
    "title": "Small",
    "family": "tofu",
    "options": {"max_new_tokens": 24, "memorisation": True, "membership": ["loss", "reference"], "privleak": True},
    "source": {"kind": "synthetic", "authors": 10, "questions_per_author": 2, "background_authors": 0, "seed": 0},
    "splits": {"forget10": 2},
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as any Hugging Face model's, with random weights."""
    from safetensors.torch import save_file

    from megatron_ext.checkpoint.tensor_sources import InitialValues

    folder = tmp_path_factory.mktemp("models") / "random"
    texts = [f"Question: Where was author {i} born?\nAnswer: In the town of number {i}." for i in range(50)]
    tokenizer = train(texts, 400, TEMPLATES["plain"], folder)
    ids = {"bos_token_id": tokenizer.bos_id, "eos_token_id": tokenizer.eos_id}
    config = {**ARCHITECTURE, "vocab_size": tokenizer.vocab_size + 3, **ids}
    (folder / "config.json").write_text(json.dumps(config))
    source = InitialValues(config, seed=0)
    tensors = {name: source.read(name, ()).contiguous() for name in source.shapes}
    save_file(tensors, folder / "model.safetensors")
    return folder


@pytest.fixture
def benchmark(tmp_path: Path) -> Path:
    path = tmp_path / "small.yaml"
    path.write_text(yaml.safe_dump(BENCHMARK))
    return path


def command(model: Path | str, benchmark: Path | str, out: Path, *more: str) -> list[str]:
    return ["evaluate", "--model", str(model), "--benchmark", str(benchmark), "--out", str(out), *more]


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(list(arguments)) == 2
    return capsys.readouterr().err


def test_everything_that_is_wrong_is_said_at_once(model: Path, tmp_path: Path, capsys: Any) -> None:
    more = ["--split", "forget11", "--layout", "tp=0,xp=2", "--option", "max_new_token=9", "--token-budget", "0"]
    said = refused(capsys, *command(tmp_path / "none", "tofu", tmp_path / "out", *more))
    assert "--model: there is no folder" in said
    assert "--split: unknown split 'forget11'" in said and "allowed: forget01, forget05, forget10" in said
    assert "--layout: 'tp=0': expected tp=N" in said and "--layout: unknown side 'xp'" in said
    assert "--option max_new_token: unknown key; did you mean 'max_new_tokens'?" in said
    assert "--token-budget: 0; at least 1 is needed" in said
    assert not (tmp_path / "out").exists()


def test_an_unknown_benchmark_is_refused_with_the_known_ones(model: Path, tmp_path: Path, capsys: Any) -> None:
    said = refused(capsys, *command(model, "tofoo", tmp_path))
    known = sorted(file.stem for file in (CONFIGS / "benchmarks").glob("*.yaml"))
    assert f"--benchmark: no file and no known name: 'tofoo'; did you mean 'tofu'? allowed: {', '.join(known)}" in said


def test_a_split_must_be_named_where_there_are_several(model: Path, tmp_path: Path, capsys: Any) -> None:
    assert "--split: is missing; allowed: forget01, forget05, forget10" in refused(
        capsys, *command(model, "tofu", tmp_path, "--data-root", str(tmp_path))
    )


def test_a_value_that_an_option_does_not_take(model: Path, benchmark: Path, tmp_path: Path, capsys: Any) -> None:
    more = ["--option", "membership=[loss, guess]", "--option", "max_new_tokens", "--option", "memorisation=[1"]
    more += ["--option", "privleak={a: 1, a: 2}"]
    said = refused(capsys, *command(model, benchmark, tmp_path / "out", *more))
    assert "--option membership[1]: unknown value 'guess'" in said and "min_k_plus_plus" in said
    assert "--option max_new_tokens: expected KEY=VALUE" in said
    assert "--option memorisation=[1: the value is not YAML" in said
    assert "--option privleak: a: given twice in one mapping" in said


def test_files_that_a_data_folder_lacks_are_named(model: Path, tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "data").mkdir()
    more = ["--split", "forget01", "--data-root", str(tmp_path / "data")]
    said = refused(capsys, *command(model, "tofu", tmp_path / "out", *more))
    assert "--data-root:" in said and "has neither forget01_perturbed.json nor forget01_perturbed.jsonl" in said


def test_a_benchmark_that_makes_its_own_data_takes_no_folder(
    model: Path, benchmark: Path, tmp_path: Path, capsys: Any
) -> None:
    said = refused(capsys, *command(model, benchmark, tmp_path / "out", "--data-root", str(tmp_path)))
    assert "--data-root: 'small' makes its own data" in said


def test_a_folder_that_is_no_model(model: Path, benchmark: Path, tmp_path: Path, capsys: Any) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(model, copy)
    (copy / "model.safetensors").unlink()
    assert "has no *.safetensors file" in refused(capsys, *command(copy, benchmark, tmp_path / "out"))
    shutil.copyfile(model / "model.safetensors", copy / "model.safetensors")
    (copy / "config.json").write_text(json.dumps({"architectures": ["OPTForCausalLM"], "model_type": "opt"}))
    assert "OPTForCausalLM" in refused(capsys, *command(copy, benchmark, tmp_path / "out"))
    said = refused(capsys, *command(model, benchmark, tmp_path / "out", "--revision", "main"))
    assert "--revision: " in said and "only a model on the hub has revisions" in said


def test_a_tokenizer_that_does_not_fit_the_model(model: Path, benchmark: Path, tmp_path: Path, capsys: Any) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(model, copy)
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config, "vocab_size": 270}))
    said = refused(capsys, *command(copy, benchmark, tmp_path / "out"))
    size = config["vocab_size"] - 3
    assert f"its tokenizer has {size} ids, but vocab_size of its config.json is 270" in said and "--model:" in said


def test_a_special_token_beyond_the_models_ids_is_no_misfit(model: Path, tmp_path: Path) -> None:
    """Nor does text become it."""
    copy = tmp_path / "copy"
    shutil.copytree(model, copy)
    config, own = (json.loads((copy / name).read_text()) for name in ("config.json", "tokenizer.json"))
    size = config["vocab_size"] - 3
    (copy / "config.json").write_text(json.dumps({**config, "vocab_size": size}))
    own["added_tokens"].append({**own["added_tokens"][0], "id": size, "content": "<image_soft_token>"})
    (copy / "tokenizer.json").write_text(json.dumps(own))
    assert given_model.shape_of(copy, 5).vocabulary == size


def test_a_layout_that_the_model_cannot_have(model: Path, benchmark: Path, tmp_path: Path, capsys: Any) -> None:
    said = refused(capsys, *command(model, benchmark, tmp_path / "out", "--layout", "tp=3"))
    assert "--layout: tensor: 3 does not divide the model's 4 (attention heads)" in said
    said = refused(capsys, *command(model, benchmark, tmp_path / "out", "--layout", "tp=2,tensor=2"))
    assert "--layout: tensor is given twice" in said


def test_what_compares_with_retrain_is_left_out_unless_it_was_asked_for(
    model: Path, benchmark: Path, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[Any] = []
    monkeypatch.setattr(evaluate, "_run", lambda spec: steps.append(spec) or 5)
    assert main(command(model, benchmark, tmp_path / "out")) == 5
    assert 'membership = ["loss"], privleak = false' in capsys.readouterr().out
    said = refused(capsys, *command(model, benchmark, tmp_path / "out", "--option", "privleak=true"))
    assert "--option privleak: no evaluation of retrain is given" in said
    assert main(command(model, benchmark, tmp_path / "out", "--as-retrain")) == 5
    assert '"privleak": true' in capsys.readouterr().out
    assert [type(step) for step in steps] == [PrepareSpec, PrepareSpec] and not steps[0].training
    said = refused(capsys, *command(model, benchmark, tmp_path / "out", "--retain-evaluation", str(tmp_path)))
    assert "evaluation.json is missing" in said


def test_a_model_and_data_of_the_hub_are_fetched_first(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[Any] = []

    def run(spec: Any) -> int:
        steps.append(spec)
        if isinstance(spec, FetchSpec):
            shutil.copytree(model, spec.output / "checkpoint")
        return 7 if isinstance(spec, FetchDataSpec) else 0

    monkeypatch.setattr(evaluate, "_run", run)
    out = tmp_path / "out"
    arguments = command("owner/model", "tofu", out, "--split", "forget05", "--revision", "v2")
    assert main([*arguments, "--option", "max_new_tokens=20"]) == 7
    fetched, data = steps
    assert (fetched.hub, fetched.revision, fetched.output) == ("owner/model", "v2", out / "model")
    assert (data.repository, data.output) == ("locuslab/TOFU", out / "source")
    assert ["forget05_perturbed"] in data.files and ["full"] not in data.files


def test_open_unlearnings_models_and_its_logs_of_retrain(
    model: Path, benchmark: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """A model by its name has the template that it was tuned with, and a log stands in for retrain's evaluation."""

    def run(spec: Any) -> int:
        if isinstance(spec, FetchSpec):
            assert spec.hub == "open-unlearning/tofu_phi-1_5_full"
            shutil.copytree(model, spec.output / "checkpoint")
        return 0 if isinstance(spec, FetchSpec) else 7

    monkeypatch.setattr(evaluate, "_run", run)
    log, out = tmp_path / "TOFU_EVAL.json", tmp_path / "out"
    log.write_text(json.dumps({"mia_min_k": {"agg_value": 0.6}, "forget_Q_A_Prob": {"agg_value": 0.2}}))
    arguments = command("open-unlearning/tofu_phi-1_5_full", benchmark, out)
    assert main([*arguments, "--retain-evaluation", str(log)]) == 7
    said = capsys.readouterr().out
    assert "template   plain-open-unlearning: " in said and '"privleak_retrain_auc": 0.6' in said
    assert json.loads((out / "retain-evaluation" / "evaluation.json").read_text())["model"] == "retrain"
    shutil.rmtree(out)
    log.write_text(json.dumps({"forget_Q_A_Prob": {"agg_value": 0.2}}))
    assert main([*arguments, "--retain-evaluation", str(log)]) == 7
    said = capsys.readouterr().out
    assert "mia_min_k" in said and '"privleak": false' in said and '"membership": ["loss"]' in said
    more = ["--retain-evaluation", str(log), "--option", "privleak=true"]
    assert "--option privleak: " in refused(capsys, *arguments, *more)
    log.write_text("{}")
    assert "--retain-evaluation: " in refused(capsys, *arguments, "--retain-evaluation", str(log))
    muse = log.rename(tmp_path / "MUSE_EVAL.json")
    assert "benchmark is 'tofu'" in refused(capsys, *arguments, "--retain-evaluation", str(muse))


@pytest.mark.parametrize(
    ("template", "wanted"),
    [
        ("{{ bos }}<|start_header_id|>user", "llama-3"),
        ("[INST] {{ message }} [/INST]", "llama-2"),
        ("<|user|>\n{{ message }}</s><|assistant|>", "zephyr"),
        ("<|im_start|>user", "chatml"),
        ("<start_of_turn>user", "gemma"),
        ("<|user|>\n{{ message }}<|end|><|assistant|>", "phi-3"),
        ("### User:", "plain"),
        (None, "plain"),
    ],
)
def test_the_template_is_that_of_the_tokenizer(template: str | None, wanted: str, tmp_path: Path) -> None:
    # Llama 3's base model has the same tokens, but no chat template.
    config = {"added_tokens_decoder": {"1": {"content": "<|start_header_id|>"}}, "chat_template": template}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    name, why = template_of(tmp_path)
    assert name == wanted and "chat template" in why
    if template:
        (tmp_path / "chat_template.jinja").write_text(template)
        (tmp_path / "tokenizer_config.json").write_text("{}")
        assert template_of(tmp_path)[0] == wanted


def test_layers_that_do_not_divide_are_split_unevenly() -> None:
    shape = Shape.of({**ARCHITECTURE, "vocab_size": 400})
    layout = parallel_layout("pp=2, dp=1", [])
    assert layout is not None
    assert given_model.fitting_layout(layout, shape, "cpu").pipeline_split == [2, 1]


def start(arguments: list[str], most: int | None = None) -> subprocess.Popen[str]:
    """The command in a process group of its own; ``most``: bytes that a file may have, a disk that is full after it."""

    def limit() -> None:
        if most is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))

    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    called = [sys.executable, "-m", "pipeline", *arguments]
    return subprocess.Popen(called, cwd=ROOT, start_new_session=True, preexec_fn=limit, **pipes)


def finish(process: subprocess.Popen[str]) -> tuple[int, str]:
    try:
        out, _ = process.communicate(timeout=120)
    finally:
        process.kill()
    return process.returncode, out


@pytest.mark.slow
def test_a_killed_run_and_a_full_disk_lose_nothing(
    model: Path, benchmark: Path, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    arguments = command(model, benchmark, out, "--as-retrain", "--device", "cpu", "--token-budget", "300")
    answers = out / "answers" / "rank-0.jsonl"

    # Killed in the middle, the process and what it has started.
    killed = start(arguments)
    end = time.monotonic() + 100
    while time.monotonic() < end and not (answers.is_file() and answers.stat().st_size > 2000):
        assert killed.poll() is None, killed.communicate()[0]
        time.sleep(0.01)
    os.killpg(killed.pid, signal.SIGKILL)
    finish(killed)
    assert not (out / "evaluation.json").exists()
    kept = answers.read_text().count("\n")
    assert kept > 0

    # Going on, until no more can be written.
    size = max(answers.stat().st_size + 3000, *(file.stat().st_size + 1 for file in out.rglob("*") if file.is_file()))
    status, said = finish(start(arguments, most=size))
    assert status == 1, said
    assert f"{out / 'data'}: unchanged, not prepared again" in said
    assert f"going on: {kept} answers are in {answers.parent}" in said
    assert f"{answers.parent}: the next run goes on from there" in said and "Traceback" not in said
    text = answers.read_text()
    more = text.count("\n")
    assert more > kept and not text.endswith("\n"), "the disk was full in the middle of a line"

    # To the end, where the answers are no longer needed.
    status, said = finish(start(arguments))
    assert status == 0, said
    assert "an earlier run did not finish: going on" in said
    assert f"going on: {more} answers are in {answers.parent}" in said
    assert "| Model utility " in said and f"{out / 'evaluation.json'}: all" in said
    assert not answers.parent.exists()
    found = json.loads((out / "evaluation.json").read_text())
    assert found["model"] == "retrain" and found["metrics"]["forget_quality"] == 1.0
    assert found["metrics"]["privleak"] == pytest.approx(0, abs=1e-6)

    # Once more: nothing to do.
    before = (out / "evaluation.json").stat().st_mtime_ns
    capsys.readouterr()
    status = main(arguments)
    said = "".join(capsys.readouterr())
    assert status == 0 and f"evaluation {out}: finished before, and nothing has changed: not run again" in said, said
    assert "| Model utility " in said and (out / "evaluation.json").stat().st_mtime_ns == before

    _metrics_again(out, found["metrics"], capsys)
    _another_layout(arguments, monkeypatch, capsys)


def _metrics_again(out: Path, wanted: dict[str, float], capsys: Any) -> None:
    examples = out / "examples.jsonl"
    capsys.readouterr()
    assert main(["metrics", str(examples)]) == 0
    assert json.loads(capsys.readouterr().out) == wanted
    assert main(["metrics", str(examples), "--option", "memorisation=false"]) == 0
    fewer = json.loads(capsys.readouterr().out)
    assert fewer == {key: value for key, value in wanted.items() if key not in MEMORISATION}


MEMORISATION = ("extraction_strength", "exact_memorisation")


def _another_layout(arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    """It is another evaluation, on the same prepared data."""
    started: list[Any] = []
    monkeypatch.setattr(evaluate, "_run", lambda spec: started.append(spec) or 5)
    assert main([*arguments, "--layout", "tp=2"]) == 5
    said = capsys.readouterr().out
    assert "unchanged, not prepared again" in said and "other than before: runtime; evaluated again" in said
    (spec,) = started
    assert isinstance(spec, EvaluateSpec) and spec.runtime.layout.tensor == 2


SETTINGS = {
    "options": {"family": "tofu"},
    "decoding": "greedy",
    "precision": "fp32",
    "examples": {"forget": 3},
    "data_sha256": {"forget": "a" * 64},
}


def _examples(folder: Path, model: str = "npo", **changes: Any) -> Path:
    """A small evaluation by hand, of a tofu forget set and what else there must be."""
    rows = []
    for name in ("forget", "retain", "real_authors", "world_facts"):
        for index in range(3):
            losses = {"answer": 0.5 + index, "paraphrased": 0.6 + index, "perturbed_0": 1.0 + index}
            scores = {key: {"avg_loss": loss, "log_prob": -2 * loss, "tokens": 2} for key, loss in losses.items()}
            rows.append(
                {"set": name, "index": index, "answer": "one two", "generation": "one two", "scores": scores}
                | {"generation__tofu": "one"}
            )
    folder.mkdir()
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "examples.jsonl").write_text(text)
    provenance = {"checkpoint": "model", "data": "data", "retain_evaluation": None}
    provenance["examples_sha256"] = hashlib.sha256(text.encode()).hexdigest()
    record = {"schema": 2, "model": model, "benchmark": "tofu", "split": "forget10", "seed": None, "metrics": {}}
    record |= {"settings": SETTINGS, "provenance": provenance, **changes}
    (folder / "evaluation.json").write_text(json.dumps(record))
    return folder / "examples.jsonl"


def test_metrics_of_examples_alone(tmp_path: Path, capsys: Any) -> None:
    examples = _examples(tmp_path / "npo")
    retain = _examples(tmp_path / "retrain", "retrain")
    assert main(["metrics", str(examples)]) == 0
    alone = json.loads(capsys.readouterr().out)
    assert alone["retain_rouge"] == 1.0 and "forget_quality" not in alone
    assert main(["metrics", str(examples), "--retain", str(retain)]) == 0
    assert json.loads(capsys.readouterr().out)["forget_quality"] == 1.0
    assert main(["metrics", str(retain)]) == 0
    assert json.loads(capsys.readouterr().out)["forget_quality"] == 1.0  # retrain, compared with itself
    (tmp_path / "npo" / "evaluation.json").unlink()
    assert main(["metrics", str(examples)]) == 2
    assert "--family: is missing" in capsys.readouterr().err
    assert main(["metrics", str(examples), "--family", "tofu"]) == 0
    assert json.loads(capsys.readouterr().out) == alone
    assert main(["metrics", str(examples), "--family", "tofoo"]) == 2
    assert "unknown family 'tofoo'; did you mean 'tofu'?" in capsys.readouterr().err


def test_metrics_name_the_row_that_lacks_something(tmp_path: Path, capsys: Any) -> None:
    examples = _examples(tmp_path / "npo")
    rows = [json.loads(line) for line in examples.read_text().splitlines()]

    def said(change: Any) -> str:
        changed = json.loads(json.dumps(rows))
        change(changed)
        examples.write_text("".join(json.dumps(row) + "\n" for row in changed))
        assert main(["metrics", str(examples)]) == 1
        return capsys.readouterr().err

    assert "examples.jsonl, line 3: 'set' is None" in said(lambda rows: rows[2].pop("set"))
    assert "examples.jsonl, line 5: no 'answer'" in said(lambda rows: rows[4].pop("answer"))
    other = said(lambda rows: [row.pop("answer") for row in (*(r for r in rows if r["set"] != "retain"), rows[4])])
    assert "examples.jsonl, line 5: no 'answer'" in other, "of a set in which others have it"
    assert "examples.jsonl, line 2: 'answer' is 5: not a text" in said(lambda rows: rows[1].update(answer=5))
    lost = said(lambda rows: rows[1].pop("scores"))
    assert "examples.jsonl" in lost and "set 'forget', example 1" in lost
    lost = said(lambda rows: rows[4]["scores"]["answer"].pop("avg_loss"))
    assert "set 'retain', example 1: target 'answer' has avg_loss None" in lost
    assert "no examples of set 'retain'" in said(lambda rows: rows.__delitem__(slice(3, 6)))
    examples.write_text("{\n")
    assert main(["metrics", str(examples)]) == 1
    assert "examples.jsonl, line 1: not JSON" in capsys.readouterr().err
    assert main(["metrics", str(tmp_path / "none.jsonl"), "--family", "tofu"]) == 1
    assert "none.jsonl" in capsys.readouterr().err


@pytest.mark.parametrize(
    "changes",
    [{"split": "forget05"}, {"settings": {**SETTINGS, "data_sha256": {"forget": "b" * 64}}}],
)
def test_metrics_refuse_retrain_of_other_data(changes: dict[str, Any], tmp_path: Path, capsys: Any) -> None:
    examples = _examples(tmp_path / "npo")
    retain = _examples(tmp_path / "retrain", "retrain", **changes)
    assert main(["metrics", str(examples), "--retain", str(retain)]) == 1
    said = capsys.readouterr().err
    assert "--retain:" in said and "is of another evaluation" in said
    both = ("forget10", "forget05") if "split" in changes else ("a" * 64, "b" * 64)
    assert all(repr(value) in said for value in both)


def test_a_refused_command_does_not_take_over_the_results_of_the_run_that_is_alive(
    model: Path, benchmark: Path, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only here does a command with other options come while another's evaluation runs in the same folder."""
    from pipeline.steps.prepare import prepare

    out, alive, made = tmp_path / "out", [False], [0]
    first = command(model, benchmark, out, "--option", "max_new_tokens=5")
    second = command(model, benchmark, out, "--option", "max_new_tokens=3")

    def run(spec: Any) -> int:
        if isinstance(spec, PrepareSpec):
            prepare(spec)
        elif alive[0]:
            return 2
        else:
            alive[0] = True
            (out / "spec.yaml").write_text(as_yaml(spec))
            (out / "evaluation.json").unlink(missing_ok=True)
            assert main(second if spec.options.max_new_tokens == 5 else first) == 2
            alive[0] = False
            made[0] += 1
            shutil.copytree(_examples(tmp_path / f"made {made[0]}").parent, out, dirs_exist_ok=True)
            (out / "provenance.json").write_text(json.dumps({"spec": spec.model_dump(mode="json")}))
        return 0

    monkeypatch.setattr(evaluate, "_run", run)
    monkeypatch.setattr(evaluate.results, "lines", lambda spec: ["shown"])
    assert main(first) == 0 and main(first) == 0
    assert capsys.readouterr().out.count("finished before, and nothing has changed") == 1
    assert main(second) == 0 and made == [2]
    assert "other than before: options; evaluated again" in capsys.readouterr().out
    (out / "evaluation.json").write_text((out / "evaluation.json").read_text() + " ")
    assert main(second) == 0 and made == [3], "the record is not the one that was noted"
    (out / "inputs.json").write_text("[]")
    assert main(second) == 0 and made == [4]
    monkeypatch.setattr(evaluate, "_run", lambda spec: 0)  # another's results are there at the end
    assert main(first) == 1
    assert "another run has begun there" in capsys.readouterr().err


def test_a_retain_evaluation_of_other_data_is_refused_before_the_model_is_loaded(
    model: Path, benchmark: Path, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pipeline.steps.prepare import prepare

    started: list[Any] = []

    def run(spec: Any) -> int:
        started.append(spec)
        if isinstance(spec, PrepareSpec):
            prepare(spec)
        return 0

    monkeypatch.setattr(evaluate, "_run", run)
    retain = _examples(tmp_path / "retrain", "retrain", benchmark="small", schema=2, split="forget05")
    more = ["--retain-evaluation", str(retain.with_name("evaluation.json"))]
    assert main(command(model, benchmark, tmp_path / "out", *more)) == 1
    said = capsys.readouterr().err
    assert "evaluation.json: split is 'forget05'" in said and "'forget10'" in said
    assert not any(isinstance(spec, EvaluateSpec) for spec in started)
