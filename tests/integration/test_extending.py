"""The made-up methods of docs/extending.md work as the page gives them: written to a copy of the project and run."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from megatron_ext.data.sequences import Sequences
from pipeline.config.sizing import Shape
from tests.support import worlds

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "extending.md"


def blocks() -> dict[str, str]:
    """The page's fenced code blocks by what their first line, a comment, names."""
    found = re.findall(r"^```\w+\n# (\S[^\n]*)\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    return dict(found)


FILES = {name: text for name, text in blocks().items() if "/" in name}


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the project with the page's files in it, and its experiment, made from `mini`."""
    folder = tmp_path_factory.mktemp("project")
    for name in ("megatron_ext", "pipeline", "workflow_configs"):
        shutil.copytree(ROOT / name, folder / name)
    shutil.copy(ROOT / "Snakefile", folder)
    for name, text in FILES.items():
        assert not (folder / name).exists(), f"{name} exists: the page needs another name"
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(f"# {name}\n{text}")
    mini = yaml.safe_load((folder / "workflow_configs/experiments/mini.yaml").read_text())
    mini |= {"name": "trial", **yaml.safe_load(blocks()["methods of an experiment"])}
    (folder / "workflow_configs/experiments/trial.yaml").write_text(yaml.safe_dump(mini))
    training = mini["training"]["target"]
    models = {"target": {**training, "data": {"full": 1.0}}, "retrain": {**training, "data": {"retain": 1.0}}}
    colours = {"name": "colours", "benchmark": "colours", "split": "quarter", "training": models, "evaluation": {}}
    (folder / "workflow_configs/experiments/colours.yaml").write_text(yaml.safe_dump({**mini, **colours}))
    return folder


def python(project: Path, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run a module, or with "-c" a text, of the project's copy."""
    environment = {**os.environ, "PYTHONPATH": str(project), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *(() if arguments[0] == "-c" else ("-m",)), *map(str, arguments)]
    return subprocess.run(command, cwd=project, env=environment, capture_output=True, text=True, timeout=120)


def test_every_code_block_of_the_page_is_a_file_or_the_experiment() -> None:
    assert len(re.findall(r"^```\w", PAGE.read_text(), re.MULTILINE)) == len(blocks())
    assert set(blocks()) - set(FILES) == {"methods of an experiment"}
    folders = {Path(name).parent.as_posix() for name in FILES}
    assert folders == {
        "megatron_ext/losses",
        "megatron_ext/model/families",
        "megatron_ext/updates",
        "pipeline/benchmarks/colours",
        "workflow_configs/benchmarks",
        "workflow_configs/methods",
    }


@pytest.mark.slow
def test_the_page_is_kept_in_the_projects_style(project: Path) -> None:
    sources = [name for name in FILES if name.endswith(".py")]
    for command in (["ruff", "check", "--isolated", "--select=E,F,I,UP,B,SIM,RUF"], ["ruff", "format", "--check"]):
        done = python(project, *command, "--line-length=120", *sources)
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
def test_an_experiment_with_the_pages_methods_is_valid(project: Path) -> None:
    done = python(project, "pipeline", "validate", "trial")
    assert done.returncode == 0, done.stderr
    for name in ("surgery-npo", "pause", "hinge-wide"):
        assert f"unlearned/{name}/seed-0" in done.stdout


@pytest.mark.slow
def test_an_experiment_on_the_pages_benchmark_is_valid(project: Path) -> None:
    done = python(project, "pipeline", "validate", "colours")
    assert done.returncode == 0, done.stderr
    assert "quarter (4 rows to forget)" in done.stdout and "things 16" in done.stdout


@pytest.mark.slow
def test_the_pages_benchmark_is_prepared_and_its_metrics_are_computed(project: Path, tmp_path: Path) -> None:
    spec = {
        "program": "prepare",
        "family": "colours",
        "source": {"kind": "colours", "things": 8},
        "forget_split": "quarter",
        "sets": ["forget", "retain"],
        "tokenizer": {"kind": "bpe", "vocab_size": 300},
        "max_length": 64,
        "output": str(tmp_path / "data"),
    }
    (tmp_path / "spec.yaml").write_text(yaml.safe_dump(spec))
    done = python(project, "pipeline.steps.prepare", tmp_path / "spec.yaml")
    assert done.returncode == 0, done.stderr
    lengths = {path.stem: len(Sequences.load(path)) for path in (tmp_path / "data/train").iterdir()}
    assert lengths == {"full": 8, "forget": 2, "retain": 6}
    examples = [
        {"set": name, "index": 0, "scores": {"answer": {"avg_loss": math.log(odds)}}}
        for name, odds in (("forget", 4), ("retain", 2))
    ]
    (tmp_path / "examples.jsonl").write_text("".join(json.dumps(example) + "\n" for example in examples))
    done = python(project, "pipeline", "metrics", tmp_path / "examples.jsonl", "--family", "colours")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == pytest.approx({"forget_probability": 0.25, "retain_probability": 0.5})


@pytest.mark.slow
def test_the_pages_family_is_found_by_its_architecture(project: Path) -> None:
    config = worlds.CONFIG | {"architectures": ["MadeUpForCausalLM"]}
    code = (
        "import json, sys; from megatron_ext.model.families import family_of; "
        "from pipeline.config.sizing import Shape; "
        "config = json.loads(sys.argv[1]); print(family_of(config).__module__, Shape.of(config).parameters)"
    )
    done = python(project, "-c", code, json.dumps(config))
    assert done.returncode == 0, done.stderr
    size = worlds.CONFIG["hidden_size"] // worlds.CONFIG["num_attention_heads"]
    norms = 2 * size * worlds.CONFIG["num_hidden_layers"]
    assert done.stdout.split() == [
        "megatron_ext.model.families.made_up",
        str(Shape.of(worlds.CONFIG).parameters + norms),
    ]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "old", "new", "said"),
    [
        ("megatron_ext/losses/hinge.py", '= "sequence"', '= "row"', "class Hinge: unit: 'row' is not allowed"),
        ("pipeline/benchmarks/colours/data.py", "DATA =", "DATUM =", "DATA is missing"),
    ],
)
def test_a_file_that_cannot_be_used_is_one_line(project: Path, name: str, old: str, new: str, said: str) -> None:
    file = project / name
    text = file.read_text()
    file.write_text(text.replace(old, new))
    done = python(project, "pipeline", "validate", "trial")
    file.write_text(text)
    assert done.returncode == 2 and done.stderr.startswith(f"{name}: {said}") and done.stderr.count("\n") == 1


@pytest.mark.slow
def test_a_hyper_parameter_out_of_range_is_an_error_that_names_its_key(project: Path) -> None:
    experiment = project / "workflow_configs/experiments/trial.yaml"
    wrong = yaml.safe_load(experiment.read_text())
    wrong["methods"] = [{"method": "hinge", "overrides": {"forget": {"margin": -1.0}}}]
    path = project / "wrong.yaml"
    path.write_text(yaml.safe_dump(wrong))
    done = python(project, "pipeline", "validate", path)
    assert done.returncode == 2 and "margin" in done.stderr and "greater than 0" in done.stderr


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A target model, with the log-probabilities of forget and retain set."""
    from megatron_ext.steps import reference, train

    folder = tmp_path_factory.mktemp("world")
    worlds.write_data(folder)
    train.main([str(worlds.train_spec(folder))])
    spec = worlds.reference_spec(folder)
    reference.main([str(spec)])
    retain = {**yaml.safe_load(spec.read_text()), "data": str(folder / "retain.npz"), "output": str(folder / "known")}
    (folder / "known.yaml").write_text(yaml.safe_dump(retain))
    reference.main([str(folder / "known.yaml")])
    return folder


RUNS: dict[str, dict[str, Any]] = {
    "hinge": {"epochs": 10.0, "optimizer": {"learning_rate": 0.01}},
    "surgery-npo": {"epochs": 6.0},
    # A slack so small that batches differ by more.
    "pause": {"rule": {"name": "pause", "slack": 1.0}, "epochs": 12.0, "optimizer": {"learning_rate": 1e-4}},
}
ONE_AFTER_ANOTHER = "import sys; from megatron_ext.steps import unlearn; [unlearn.main([a]) for a in sys.argv[1:]]"


@pytest.fixture(scope="module")
def logs(project: Path, world: Path) -> dict[str, list[dict[str, Any]]]:
    """The step logs of the page's methods, with the whole forget set a step. Each changes the model."""
    specs = [unlearning(project, world, method, **changes) for method, changes in RUNS.items()]
    done = python(project, "-c", ONE_AFTER_ANOTHER, *specs)
    assert done.returncode == 0, done.stderr
    target = (world / "target/checkpoint/model.safetensors").read_bytes()
    for method in RUNS:
        assert json.loads((world / method / "summary.json").read_text())["flags"] == []
        weights = (world / method / "checkpoint/model.safetensors").read_bytes()
        assert len(weights) == len(target) and weights != target
    lines = {method: (world / method / "steps.jsonl").read_text().splitlines() for method in RUNS}
    return {method: [json.loads(line) for line in lines[method]] for method in RUNS}


def unlearning(project: Path, world: Path, method: str, **changes: Any) -> Path:
    """The specification of a run of one of the page's method files."""
    given = yaml.safe_load((project / "workflow_configs/methods" / f"{method}.yaml").read_text())
    topic = {
        "forget_data": str(world / "forget.npz"),
        "retain_data": str(world / "retain.npz"),
        "reference_logps": str(world / "reference/reference.npz"),
        "retain_reference_logps": str(world / "known/reference.npz"),
    }
    losses = {"forget_loss": given["forget"], "retain_loss": given["retain"], "rule": given["rule"]}
    batching = {"global_batch": 30, "micro_batch": 8}
    spec = {"topics": [topic], **losses, "batching": batching, "optimizer": {"learning_rate": 0.003}}
    return worlds.unlearn_spec(world, method, **spec | {"warmup_epochs": 0.0} | changes)


@pytest.mark.slow
def test_the_loss_is_the_pages_formula(world: Path, logs: dict[str, list[dict[str, Any]]]) -> None:
    import torch
    import transformers

    rows = logs["hinge"]
    target = transformers.AutoModelForCausalLM.from_pretrained(world / "target/checkpoint", dtype=torch.float32)
    forget = Sequences.load(world / "forget.npz")
    margin, hinges = 8.0, []
    for i in range(len(forget)):
        ids, prompt = forget.row(i)
        tokens = torch.from_numpy(ids.astype(np.int64))
        with torch.no_grad():
            log_probs = target(tokens[None]).logits[0, :-1].log_softmax(-1)
        answer = log_probs.gather(-1, tokens[1:, None])[prompt - 1 :, 0]
        hinges.append(max(0.0, margin + float(answer.mean())))
    assert rows[0]["forget_loss"] == pytest.approx(sum(hinges) / len(hinges), rel=1e-5)
    assert rows[-1]["forget_loss"] < 0.5 * rows[0]["forget_loss"]


@pytest.mark.slow
def test_the_rule_takes_the_pages_direction(logs: dict[str, list[dict[str, Any]]]) -> None:
    rows = logs["surgery-npo"]
    for row in rows:
        f, r, cosine = row["forget_grad_norm"], row["retain_grad_norm"], row["grad_cosine"]
        assert row["forget_alignment"] == pytest.approx(1 + max(0.0, cosine) * r / f, rel=1e-6)
        square = (f + r * cosine - min(0.0, cosine) * r) ** 2 + r**2 * (1 - cosine**2)
        assert row["update_norm"] == pytest.approx(square**0.5, rel=1e-6)
    assert any(row["grad_cosine"] < 0 for row in rows)


@pytest.mark.slow
def test_the_rule_with_a_state_keeps_it(world: Path, logs: dict[str, list[dict[str, Any]]]) -> None:
    rows = logs["pause"]
    with np.load(world / "known/reference.npz") as file:
        before = -file["log_probs"].sum() / Sequences.load(world / "retain.npz").label_counts.sum()
    assert rows[0]["rule_state"] == {"bound": pytest.approx(before), "last": pytest.approx(before)}
    for last, row in pairwise(rows):
        assert row["rule_state"]["last"] == last["retain_loss"]
    paused = [row["rule_state"]["last"] > row["rule_state"]["bound"] for row in rows]
    assert set(paused) == {True, False}
    assert [row["note"] for row in rows] == [
        "paused: the retain loss is above its bound" if p else None for p in paused
    ]
