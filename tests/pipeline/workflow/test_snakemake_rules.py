"""What Snakemake would run, shown by dry runs on a finished experiment whose outputs are empty files."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import psutil
import pytest
import yaml

from pipeline.config.load import load
from pipeline.workflow import snakemake_rules
from pipeline.workflow.paths import refusal, refused_inputs
from tests.support import programs

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[3]
SOURCES = ("Snakefile", "pipeline", "megatron_ext", "workflow_configs")
PROFILE = ("--profile", "workflow_configs/profiles/local")
FOLDERS = ("checkpoint", "tokenizer", "figures", "examples")
RULES = {run.id: run.method.rule for run in load("mini").runs}
METHODS = tuple(RULES)
BLUR = [name for name, rule in RULES.items() if rule.name == "blur"]
GAMMA = f"gamma: {RULES['blur-npo'].gamma}"
REPORT = "report: results/mini/report/index.html"
EVERYTHING = {
    "data: Mini TOFU, forget10",
    *(f"train: {model}" for model in ("base", "target", "retrain")),
    *(f"reference: log-probabilities of {name}" for name in ("forget", "retain")),
    *(f"unlearn: {method}, seed 0" for method in METHODS),
    *(f"evaluate: {model}, mini" for model in ("target", "retrain", *(f"{method}-seed-0" for method in METHODS))),
    REPORT,
}


def snakemake(folder: Path, *arguments: str) -> CompletedProcess[str]:
    return programs.snakemake(folder, *PROFILE, *arguments)


def would_run(folder: Path, *arguments: str) -> set[str]:
    """The messages of the jobs that a run would start."""
    done = snakemake(folder, "--dry-run", *arguments)
    assert done.returncode == 0, done.stdout + done.stderr
    return set(re.findall(r"^Job \d+: (.*)$", done.stdout + done.stderr, re.MULTILINE))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the project in which mini has run: every output exists, and Snakemake's records say how it was made."""
    folder = tmp_path_factory.mktemp("project")
    for name in SOURCES:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copyfile
        copy(ROOT / name, folder / name)
    done = snakemake(folder, "--summary")
    outputs = [line.split("\t")[0] for line in done.stdout.splitlines() if line.startswith("results/")]
    assert "results/mini/report/index.html" in outputs, done.stdout + done.stderr
    for name in outputs:
        path = folder / name
        if path.name in FOLDERS:
            path.mkdir(parents=True)
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(name)
    done = snakemake(folder, "--touch", "--forceall", "all")
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture
def project(finished: Path) -> Iterator[Path]:
    """The finished project; files that a test changes by ``edit`` or ``remove`` are put back afterwards."""
    kept = {path: path.read_text() for name in SOURCES for path in _texts(finished / name)}
    report = finished / "results/mini/report/index.html"
    html = report.read_bytes()
    yield finished
    for path, text in kept.items():
        if path.read_text() != text:
            path.write_text(text)
    if not report.exists():
        report.write_bytes(html)


def _texts(path: Path) -> list[Path]:
    found = path.rglob("*") if path.is_dir() else [path]
    return [file for file in found if file.suffix in (".py", ".smk", ".yaml") or file.name == "Snakefile"]


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def test_a_new_project_runs_everything(finished: Path) -> None:
    assert would_run(finished, "all", "--config", "results=elsewhere") == {
        message.replace("results/", "elsewhere/") for message in EVERYTHING
    }


def test_attacks_run_after_the_models_that_they_attack(finished: Path) -> None:
    options = ("--config", "experiment=mini-robust", "results=elsewhere")
    messages = would_run(finished, "robustness", *options)
    models = ["target", "retrain", *(f"{method}-seed-0" for method in ("graddiff", "npo", "rmu"))]
    attacked = {f"relearn: {model}, relearn" for model in models}
    attacked |= {f"quantise: {model}, {scheme}" for model in models for scheme in ("int8", "int4")}
    names = ("relearn", "int8", "int4")
    assert {message for message in messages if message.startswith(("relearn", "quantise"))} == attacked
    # All that it needs runs too, retrain's evaluation among it; other models as they were are not asked for.
    evaluated = {f"evaluate: {model}.{name}, mini" for model in models for name in names} | {"evaluate: retrain, mini"}
    assert {message for message in messages if message.startswith("evaluate")} == evaluated
    assert {"unlearn: npo, seed 0", "train: base"} <= messages and not any("report" in text for text in messages)


def test_another_gamma_reruns_its_method_only(project: Path) -> None:
    edit(project / "workflow_configs/experiments/mini.yaml", GAMMA, "gamma: 0.55")
    assert would_run(project, "all") == {"unlearn: blur-npo, seed 0", "evaluate: blur-npo-seed-0, mini", REPORT}


def test_what_decides_no_result_reruns_nothing(project: Path) -> None:
    """A loss that no method uses, a comment in a configuration, and the code that checks configurations."""
    losses = project / "megatron_ext/losses"
    text = (losses / "ga.py").read_text()
    (losses / "descent.py").write_text(text.replace('"ga"', '"descent"'))
    edit(project / "workflow_configs/experiments/mini.yaml", "name: mini\n", "# a comment\nname: mini\n")
    with (project / "pipeline/config/load.py").open("a") as source:
        source.write("\n# a changed line\n")
    try:
        assert would_run(project, "all") == set()
    finally:
        (losses / "descent.py").unlink()


def test_a_new_method_runs_its_own_jobs_only(project: Path) -> None:
    """And the log-probabilities that only it needs."""
    experiment = project / "workflow_configs/experiments/mini.yaml"
    edit(experiment, "methods:\n", "methods:\n  - idk-dpo\n")
    assert would_run(project, "all") == {
        "reference: log-probabilities of idk",
        "unlearn: idk-dpo, seed 0",
        "evaluate: idk-dpo-seed-0, mini",
        REPORT,
    }


def test_a_deleted_report_is_rebuilt_alone(project: Path) -> None:
    (project / "results/mini/report/index.html").unlink()
    assert would_run(project, "all") == {REPORT}


@pytest.mark.parametrize(
    ("file", "first"),
    [
        ("pipeline/report/tables.py", {REPORT}),
        (
            "megatron_ext/inference/generation.py",
            {message for message in EVERYTHING if message.startswith("evaluate")} | {REPORT},
        ),
        (
            "megatron_ext/updates/blur.py",
            {message for name in BLUR for message in (f"unlearn: {name}, seed 0", f"evaluate: {name}-seed-0, mini")}
            | {REPORT},
        ),
        ("pipeline/steps/prepare.py", EVERYTHING),
    ],
)
def test_changed_code_reruns_its_step_and_what_follows(project: Path, file: str, first: set[str]) -> None:
    with (project / file).open("a") as source:
        source.write("\n# a changed line\n")
    assert would_run(project, "all") == first


def _rules(monkeypatch: pytest.MonkeyPatch, folder: Path, device: str, gpus: str) -> snakemake_rules.Rules:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", gpus)
    path = folder / "mine.yaml"
    path.write_text((ROOT / "workflow_configs/experiments/mini.yaml").read_text().replace("device: cpu", device))
    return snakemake_rules.Rules(
        *snakemake_rules.read({"experiment": str(path), "results": 2024}), folder / "image.sif"
    )


@pytest.mark.parametrize(
    ("device", "gpus", "accelerator"),
    [
        ("device: cpu", "0", 0),
        ("device: auto", "", 0),
        ("device: auto", "0", 1),
        ("device: cuda", "0", 1),
        ("device: cuda", "", 1),
    ],
)
def test_jobs_on_a_gpu_run_one_at_a_time(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, device: str, gpus: str, accelerator: int
) -> None:
    assert _rules(monkeypatch, tmp_path, device, gpus).accelerator == accelerator
    profile = yaml.safe_load((ROOT / "workflow_configs/profiles/local/config.yaml").read_text())
    assert profile["resources"] == ["accelerator=1"]
    models = {rule for file in (ROOT / "pipeline/workflow/rules").glob("*.smk") for rule in _rules_of(file.read_text())}
    loading = {"train_model", "reference_log_probabilities", "unlearn_target", "evaluate_model"}
    loading |= {"relearn_model", "quantise_model", "sample_alternatives", "sample_own_answers"}
    assert {name for name, body in models if "accelerator=jobs.accelerator" in body} == loading


def test_jobs_need_no_more_memory_together_than_there_is(finished: Path, tmp_path: Path) -> None:
    """Only here do jobs run at the same time: as there are cores for, or one, which needs more than there is."""
    project = shutil.copytree(finished, tmp_path / "project")
    rules = project / "pipeline/workflow/rules/common.smk"
    edit(rules, re.findall(r"exec python .*(?=\")", rules.read_text())[0], "echo +; sleep 0.5; echo -; touch {output}")
    run = ("evaluate", "--cores", "9", "--rerun-triggers", "mtime", "--forcerun", "evaluate_model")
    machine, little = (
        snakemake(project, *run, *more) for more in ((), ("--resources", "accelerator=1", "mem_mb=3000"))
    )
    for done, several in ((machine, True), (little, False)):
        assert done.returncode == 0 and done.stdout.count("+") == len(METHODS) + 2, done.stdout + done.stderr
        assert ("++" in "".join(done.stdout.split())) is several, done.stdout
    (free,) = re.findall(r'mem_mb=Resource\("mem_mb", (\d+)\)', machine.stderr)
    assert 0 < int(free) <= psutil.virtual_memory().total / 2**20


def _rules_of(text: str) -> list[tuple[str, str]]:
    return re.findall(r"^(?:use rule \w+ as|rule) (\w+)(?: with)?:\n((?:    .*\n|\n)*)", text, re.MULTILINE)


def test_jobs_for_gpus_do_not_start_where_there_is_none(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    snakemake_rules.require_gpus(_rules(monkeypatch, tmp_path, "device: cuda", "0").plan)
    plan = _rules(monkeypatch, tmp_path, "device: cuda", "").plan
    with pytest.raises(SystemExit, match="2"):
        snakemake_rules.require_gpus(plan)
    assert "this machine shows no GPU (CUDA_VISIBLE_DEVICES is '')" in capsys.readouterr().err


def test_options_may_be_numbers(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        snakemake_rules.read({"experiment": "tofu-small", "data_root": 2024})
    assert "data_root: '2024' is not a folder" in capsys.readouterr().err


@pytest.mark.parametrize("value", [1e3, None, True, ["a", "b"], [1], {"a": "b"}])
def test_what_snakemake_reads_as_no_text_names_no_folder(value: object, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        snakemake_rules.read({"results": value})
    assert f"--config results: Snakemake reads it as {value!r}" in capsys.readouterr().err


SHELL = ("$(touch F)", "`id`", '"; id; "', "a'b", "{x}", "a;id", "a|id", "a&id", "a\\b", "a\nb", "\x1b[2J", "*", "-n")


@pytest.mark.parametrize("path", SHELL)
def test_a_path_is_no_shell_word_and_no_pattern(path: str) -> None:
    """Only this tries all that a shell or Snakemake would read in a path."""
    found = refusal("--config results", path)
    assert found is not None and found.startswith("--config results: ") and found.isprintable()


def test_every_option_that_is_a_path_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    """Snakemake's Slurm plugin puts them between double quotes, where a shell of the login node runs this."""
    options = ("results", "data_root", "site", "experiment")
    with pytest.raises(SystemExit, match="2"):
        snakemake_rules.read(dict.fromkeys(options, "/tmp/r$(touch F)"))
    printed = capsys.readouterr().err
    assert all(f"--config {option}: '/tmp/r$(touch F)' has '$'" in printed for option in options)


@pytest.mark.parametrize("option", [{"set": ["title=$(touch F)"]}, {"set": "title=`id`"}, {"image": "$(id).sif"}])
def test_what_a_job_is_told_again_is_no_command(option: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        snakemake_rules.read(option, cluster=True)
    assert f"--config {next(iter(option))}: " in capsys.readouterr().err


def test_a_clone_may_lie_in_a_folder_with_white_space(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Snakemake refuses an image with white space in its name, also where nothing runs in one."""
    folder = tmp_path / "my folder"
    folder.mkdir()
    assert " " not in _rules(monkeypatch, folder, "device: cpu", "").container


def test_an_input_is_no_command_on_the_login_node(tmp_path: Path) -> None:
    """Only this has a data file whose name a shell would run: its author names it, not the one who runs it."""
    given = [tmp_path / "a b'c(1) ü.txt", tmp_path / "my $(touch F)" / "full.json", tmp_path / "`id`"]
    wrong = refused_inputs(given, cluster=True)
    assert len(wrong) == 2 and all(line.startswith("input of a job: ") for line in wrong)
    assert refused_inputs(given, cluster=False) == []
    (braces,) = refused_inputs([tmp_path / "{mine}" / "a.jsonl"], cluster=False)  # Snakemake's wildcards
    assert "has '{', '}'" in braces


def test_paths_that_people_have_are_allowed(tmp_path: Path) -> None:
    plan, _ = snakemake_rules.read({"results": str(tmp_path / "My results, 2 (new) ü~1%+@=:#")})
    assert plan.paths.root.name == "mini"


def test_stages_stop_where_they_say(finished: Path) -> None:
    fresh = ("--config", "results=elsewhere")
    data = {"data: Mini TOFU, forget10"}
    train = data | {f"train: {model}" for model in ("base", "target", "retrain")}
    assert would_run(finished, "train", *fresh) == train
    unlearn = {message for message in EVERYTHING if message.startswith(("unlearn", "reference"))}
    assert would_run(finished, "unlearn", *fresh) == (train | unlearn) - {"train: retrain"}
    assert would_run(finished, "evaluate", *fresh) == EVERYTHING - {REPORT}


@pytest.mark.parametrize("arguments", [("--dry-run",), ()])
def test_a_wrong_configuration_stops_before_any_job(project: Path, arguments: tuple[str, ...]) -> None:
    edit(project / "workflow_configs/experiments/mini.yaml", GAMMA, GAMMA.replace("gamma", "gama"))
    done = snakemake(project, *arguments, "all", "--config", "reslts=elsewhere")
    assert done.returncode == 2
    assert "--config reslts: unknown option; did you mean 'results'?" in done.stderr
    wanted = rf"mini.yaml:\d+: methods\[{METHODS.index('blur-npo')}\].overrides.rule.gama: unknown key; did you mean"
    assert re.search(wanted, done.stderr)
    assert "Traceback" not in done.stderr
    assert "Job " not in done.stdout + done.stderr


def test_other_experiments_and_a_data_root(finished: Path, tmp_path: Path) -> None:
    small = would_run(finished, "all", "--config", "experiment=tofu-small")
    assert {"data: TOFU, forget10", "train: target", "train: retrain"} <= small
    assert "train: base" not in small
    published = would_run(finished, "all", "--config", "experiment=tofu-llama-3.2-1b")
    assert {"fetch: target", "fetch: retrain"} <= published
    assert not any(message.startswith("train") for message in published)
    if shutil.which("nvidia-smi") is None and "CUDA_VISIBLE_DEVICES" not in os.environ:
        done = snakemake(finished, "all", "--config", "experiment=tofu-llama-3.2-1b")
        assert done.returncode == 2
        assert "this machine shows no GPU" in done.stderr
    done = snakemake(finished, "-n", "all", "--config", "experiment=tofu-small", f"data_root={tmp_path}")
    assert done.returncode == 2
    assert f"data_root: '{tmp_path}' has neither full.json nor full.jsonl" in done.stderr
