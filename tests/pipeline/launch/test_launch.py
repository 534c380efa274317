"""Starting a step: its specification on disk, its threads, its ranks, its exit status and its provenance."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from snakemake.utils import format as shell_format

from megatron_ext.config import Layout, Runtime
from megatron_ext.specs import ReferenceSpec, TrainSpec, UnlearnSpec, read
from pipeline.benchmarks.tofu.synthetic import SyntheticSource
from pipeline.data.settings import BpeTokenizer
from pipeline.launch import __main__ as launch
from pipeline.launch import environment, provenance
from pipeline.launch.lease import Lease
from pipeline.launch.specification import as_yaml, specification
from pipeline.specs import FetchSpec, PrepareSpec, ReportSpec
from pipeline.workflow.jobs import canonical

ROOT = Path(__file__).parents[3]


@pytest.fixture
def prepare(tmp_path: Path) -> PrepareSpec:
    return PrepareSpec(
        family="tofu",
        forget_split="forget10",
        sets=["forget", "retain"],
        source=SyntheticSource(authors=10, questions_per_author=2, background_authors=1, seed=3),
        tokenizer=BpeTokenizer(vocab_size=300),
        max_length=256,
        output=tmp_path / "data",
    )


def start(*arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pipeline.launch", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, **options)


def test_a_step_leaves_its_specification_and_provenance(prepare: PrepareSpec) -> None:
    path = prepare.output / "spec.yaml"
    done = start(str(path), canonical(prepare))
    assert done.returncode == 0, done.stderr
    assert PrepareSpec.model_validate(yaml.safe_load(path.read_text())) == prepare
    found = json.loads((prepare.output / "provenance.json").read_text())
    assert found["step"] == "prepare"
    assert found["spec"] == prepare.model_dump(mode="json")
    assert found["spec_sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert found["data"][str(prepare.output / "manifest.json")]["train"]["full"]["sha256"]
    assert found["summary"]["work_seconds"] > 0
    assert found["started"] <= found["ended"]
    assert not list(prepare.output.glob(".*"))


def test_a_refused_step_has_changed_nothing(prepare: PrepareSpec) -> None:
    """Otherwise the results of the run that is alive would later be taken for those of the refused one."""
    path = prepare.output / "spec.yaml"
    held = Lease.take(prepare.output)
    path.write_text("of the run that is alive")
    try:
        done = start(str(path), canonical(prepare))
    finally:
        held.release()
    assert done.returncode == 2 and "another run is alive" in done.stderr
    assert path.read_text() == "of the run that is alive"


def test_a_step_in_an_image_is_told_its_specification_there(
    prepare: PrepareSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only there is it known that nobody else writes."""
    (tmp_path / "apptainer").write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/said; cat > {tmp_path}/told\n')
    (tmp_path / "apptainer").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    path = prepare.output / "spec.yaml"
    done = start(str(path), canonical(prepare), "--image", str(tmp_path / "image.sif"))
    assert done.returncode == 0 and not path.exists()
    assert (tmp_path / "said").read_text().endswith(f"python -m pipeline.launch {path} -\n")
    assert PrepareSpec.model_validate_json((tmp_path / "told").read_text()) == prepare


def test_a_step_whose_file_changes_meanwhile_names_the_one_that_ran(
    prepare: PrepareSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = prepare.output / "spec.yaml"
    ran = as_yaml(prepare).encode()

    def program(argv: list[str]) -> None:
        path.write_text("of another")
        (prepare.output / "summary.json").write_text("{}")

    monkeypatch.setattr("pipeline.steps.prepare.main", program)
    monkeypatch.setattr("pipeline.launch.__main__.set_environment", lambda spec: None)
    assert launch.main([str(path), canonical(prepare)]) == 0
    found = json.loads((prepare.output / "provenance.json").read_text())
    assert found["spec_sha256"] == hashlib.sha256(ran).hexdigest()


def test_a_step_runs_again_from_its_specification_alone(prepare: PrepareSpec, tmp_path: Path) -> None:
    path = tmp_path / "spec.yaml"
    path.write_text(as_yaml(prepare))
    before = path.read_bytes()
    assert start(str(path)).returncode == 0
    assert path.read_bytes() == before


def test_standard_input(prepare: PrepareSpec, tmp_path: Path) -> None:
    done = start(str(tmp_path / "spec.yaml"), "-", input=canonical(prepare))
    assert done.returncode == 0, done.stderr
    assert (prepare.output / "manifest.json").is_file()


def test_the_rules_tell_a_specification_that_is_longer_than_an_argument_may_be(tmp_path: Path) -> None:
    """Only this has one of 200 KB, as a report of some hundred models has, and characters that a shell would read."""
    text = (ROOT / "pipeline/workflow/rules/common.smk").read_text()
    said = {"title": "x" * 200_000, "shell": "' \" $HOME $(id) `id` \\n \n % %s {} !", "letters": "ß–\u2028"}
    report = {"program": "report", "options": {"family": "tofu"}, "experiment": "long", "benchmark": "mini"}
    report |= {"split": "forget10", "model": "tiny", "config": said, "output": str(tmp_path / "report")}
    report["entries"] = [{"model_id": "target", "kind": "target", "title": "Target", "evaluation": str(tmp_path)}]
    spec, path = ReportSpec.model_validate(report), tmp_path / "report" / "spec.yaml"
    shell = re.search(r'shell:\s+"(.+)"\n', text)
    assert shell is not None
    params = SimpleNamespace(spec=canonical(spec), launch="")
    line = shell_format(shell[1], output=SimpleNamespace(spec=str(path)), params=params, log=str(tmp_path / "a log"))
    (tmp_path / "script.sh").write_text(line)  # as Snakemake does with a long line
    environment = {**os.environ, "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])}
    subprocess.run(["bash", str(tmp_path / "script.sh")], cwd=ROOT, env=environment, capture_output=True)
    assert specification(path) == spec


@pytest.mark.parametrize("text", ["{", '{"step": "nothing"}', '{"program": "prepare", "colour": "red"}'])
def test_a_wrong_specification_is_refused_and_not_written(tmp_path: Path, text: str) -> None:
    done = start(str(tmp_path / "spec.yaml"), text)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr and "spec.yaml" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_failing_step_fails_and_leaves_no_provenance(prepare: PrepareSpec) -> None:
    spec = prepare.model_copy(update={"max_length": 8})  # every row is longer
    done = start(str(prepare.output / "spec.yaml"), canonical(spec))
    assert done.returncode == 1
    assert not (prepare.output / "provenance.json").exists()


def reference(folder: Path, ranks: int = 1, threads: int = 1, device: Any = "cpu") -> ReferenceSpec:
    runtime = Runtime(layout=Layout(tensor=ranks), device=device, threads=threads)
    return ReferenceSpec(checkpoint=folder / "none", data=folder / "none.npz", runtime=runtime, output=folder)


@pytest.mark.parametrize("revision", ["08", "0o17", "1e5", "1:30", "1_000", "main"])
def test_a_text_of_a_specification_stays_a_text(revision: str, tmp_path: Path) -> None:
    """As a commit of digits alone: what is written is in quotes where it would be a number for its reader."""
    spec = FetchSpec(hub="a/b", revision=revision, output=tmp_path)
    (tmp_path / "spec.yaml").write_text(as_yaml(spec))
    assert specification(tmp_path / "spec.yaml") == spec


def test_a_number_that_was_edited_by_hand_is_a_number(tmp_path: Path) -> None:
    path = tmp_path / "spec.yaml"
    text = as_yaml(reference(tmp_path, threads=3))
    path.write_text(text.replace("timeout_seconds: 600.0", "timeout_seconds: 6e2"))
    assert path.read_text() != text
    assert specification(path).runtime.timeout_seconds == 600.0
    assert read(path, ReferenceSpec).runtime.timeout_seconds == 600.0


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("program: reference", "checkpoint\n  Field required"),
        ("a: [", "while"),
        ("step: reference", "step: was renamed to 'program'"),
    ],
)
def test_a_program_names_what_is_wrong_with_its_specification(tmp_path: Path, text: str, expected: str) -> None:
    path = tmp_path / "spec.yaml"
    path.write_text(text)
    with pytest.raises(SystemExit) as error:
        read(path, ReferenceSpec)
    assert str(error.value).startswith(f"{path}: ") and expected in str(error.value)


def test_the_environment_follows_the_specification(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OMP_NUM_THREADS", "OMP_THREAD_LIMIT", "MKL_NUM_THREADS", "PYTHONHASHSEED", "HF_HUB_OFFLINE"):
        monkeypatch.setenv(name, "99")
    environment.set_environment(reference(tmp_path, threads=3))
    assert (os.environ["OMP_NUM_THREADS"], os.environ["MKL_NUM_THREADS"]) == ("3", "3")
    assert "OMP_THREAD_LIMIT" not in os.environ
    assert os.environ["PYTHONHASHSEED"] == "0"


@pytest.mark.parametrize(
    ("device", "given", "expected"),
    [("auto", None, "expandable_segments:True"), ("cpu", None, None), ("cuda", "max_split_size_mb:64", None)],
)
def test_torchs_allocator_grows_its_segments_unless_told_otherwise(
    device: Any,
    given: str | None,
    expected: str | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in environment.ALLOCATOR:
        monkeypatch.setenv(name, "x")  # so that it is restored, also where it was not set
        monkeypatch.delenv(name)
    if given is not None:
        monkeypatch.setenv("PYTORCH_ALLOC_CONF", given)
    environment.set_environment(reference(tmp_path, device=device))
    assert os.environ.get("PYTORCH_CUDA_ALLOC_CONF") == expected


def test_secrets_reach_only_what_fetches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = [f"{prefix}{name}" for prefix in ("", "APPTAINERENV_") for name in environment.HUB]
    for name in ("HF_HUB_OFFLINE", *names):
        monkeypatch.setenv(name, "0")
    environment.set_environment(FetchSpec(hub="a/b", output=tmp_path))
    assert [os.environ.get(name) for name in names] == ["0"] * len(names)
    assert os.environ["HF_HUB_OFFLINE"] == "0"
    environment.set_environment(reference(tmp_path))
    assert [os.environ.get(name) for name in names] == [None] * len(names)
    assert os.environ["HF_HUB_OFFLINE"] == "1"


@pytest.mark.slow
def test_what_a_step_prints_is_in_the_log_of_its_attempt(prepare: PrepareSpec, tmp_path: Path) -> None:
    log = tmp_path / "logs" / "data.log"
    bad = canonical(prepare.model_copy(update={"max_length": 8}))
    done = start(str(prepare.output / "spec.yaml"), bad, "--log", str(log))
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr == f"{prepare.output / 'spec.yaml'}: failed, exit status 1. Log: {log}.\n"
    first = log.read_text()
    assert first.startswith("attempt 1 at ") and "max_length" in first
    log.unlink()  # as Snakemake does before it starts a job again
    done = start(str(prepare.output / "spec.yaml"), canonical(prepare), "--log", str(log))
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert log.read_text().startswith("attempt 2 at ")
    assert (log.parent / "attempts" / "data.1.log").read_text() == first
    assert sorted(path.name for path in (log.parent / "attempts").iterdir()) == ["data.1.log", "data.2.log"]


def test_a_wrong_specification_is_in_the_log(tmp_path: Path) -> None:
    log = tmp_path / "data.log"
    done = start(str(tmp_path / "spec.yaml"), "{", "--log", str(log))
    assert done.returncode == 2 and str(log) in done.stderr
    assert "spec.yaml: " in log.read_text() and "Traceback" not in log.read_text()


def test_a_log_that_cannot_be_opened_is_named(prepare: PrepareSpec, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    done = start(str(prepare.output / "spec.yaml"), canonical(prepare), "--log", str(tmp_path / "file" / "data.log"))
    assert done.returncode == 2
    assert f"--log {tmp_path / 'file' / 'data.log'}: " in done.stderr and "Traceback" not in done.stderr
    assert not prepare.output.exists()


def test_where_a_step_runs_is_not_in_its_specification(tmp_path: Path) -> None:
    """A resumed run is the same run on other nodes and in another image."""
    runtime = set(Runtime.model_fields) - {"timeout_seconds"}  # what a state's identity leaves out
    computing = {
        "precision",
        "threads",
        "reference_model",
        "kernels",
        "deterministic",
        "recompute_activations",
        "memory",
    }
    assert runtime == {"layout", "device", *computing}
    for kind in (TrainSpec, UnlearnSpec):
        assert not {"image", "nodes", "log"} & set(kind.model_fields)


def test_provenance_knows_image_and_job_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    names = {"path": "UNLEARN_IMAGE", "sha256": "UNLEARN_IMAGE_SHA256"}
    for name in names.values():
        monkeypatch.delenv(name, raising=False)
    assert provenance._given(**names) is None
    monkeypatch.setenv("UNLEARN_IMAGE", "a.sif")
    assert provenance._given(**names) == {"path": "a.sif", "sha256": None}


def test_provenance_names_the_packages_of_this_project(monkeypatch: pytest.MonkeyPatch) -> None:
    requirements = ["numpy>=2", "pydantic<3,>=2.10", 'pytest>=8; extra == "dev"', "nothing-like-this"]
    requirements += ['torch>=2; extra == "steps"', 'ruff[all]>=0.12; extra == "gpu"']
    requirements += ['transformer-engine-of-none; extra == "gpu"']
    monkeypatch.setattr(provenance.importlib.metadata, "requires", lambda _: requirements)
    assert set(provenance._packages()) == {"numpy", "pydantic", "ruff", "torch"}


@pytest.mark.parametrize(
    "place", ["XDG_CONFIG_HOME", "HOME", "GIT_CONFIG_GLOBAL", "GIT_CONFIG_COUNT", "the repository"]
)
def test_git_runs_nothing_that_settings_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    """A file monitor is a program that `git status` starts, and whoever can write settings names it."""
    (tmp_path / "monitor").write_text(f"#!/bin/sh\ntouch {tmp_path / 'ran'}\n")
    (tmp_path / "monitor").chmod(0o755)
    for name in [name for name in os.environ if name.startswith("GIT_")]:
        monkeypatch.delenv(name)
    settings = f"[core]\n\tfsmonitor = {tmp_path / 'monitor'}\n"
    monkeypatch.setattr(provenance, "ROOT", tmp_path / "clone")
    named = ["-c", "user.name=a", "-c", "user.email=b@example.org"]
    for arguments in (["init", "-q"], [*named, "commit", "-q", "--allow-empty", "-m", "x"]):
        subprocess.run(["git", "-C", _made(tmp_path / "clone"), *arguments], check=True)
    if place == "GIT_CONFIG_COUNT":
        for name, value in (("COUNT", "1"), ("KEY_0", "core.fsmonitor"), ("VALUE_0", str(tmp_path / "monitor"))):
            monkeypatch.setenv(f"GIT_CONFIG_{name}", value)
    elif place == "the repository":
        with (tmp_path / "clone" / ".git" / "config").open("a") as file:
            file.write(settings)
    else:
        file = {"XDG_CONFIG_HOME": "git/config", "HOME": ".gitconfig", "GIT_CONFIG_GLOBAL": ""}[place]
        target = tmp_path / "settings" / file if file else tmp_path / "gitconfig"
        _made(target.parent)
        target.write_text(settings)
        monkeypatch.setenv(place, str(tmp_path / "settings" if file else target))
    subprocess.run(["git", "-C", tmp_path / "clone", "status"], check=True, capture_output=True)
    assert (tmp_path / "ran").exists(), "what is planted works"
    (tmp_path / "ran").unlink()
    found = provenance._git()
    assert found is not None and len(found["commit"]) == 40 and found["dirty"] is False
    assert not (tmp_path / "ran").exists()


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder
