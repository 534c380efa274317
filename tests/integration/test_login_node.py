"""A machine that only plans, fetches and submits needs none of what the steps need."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest

from pipeline.config.load import load
from pipeline.config.site import Site
from pipeline.workflow import snakemake_rules
from pipeline.workflow.plan import Plan

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
COMMIT = "0123456789abcdef0123456789abcdef01234567"
STEPS_ONLY = ("torch", "transformers", "megatron", "scipy", "matplotlib", "safetensors", "tokenizers", "rouge_score")
STEPS_ONLY += ("lm_eval", "datasets", "pyarrow")


@pytest.fixture
def login(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every Python process that is started from here on fails to import a package that only steps need."""
    for name in STEPS_ONLY:
        (tmp_path / "absent" / name).mkdir(parents=True)
        (tmp_path / "absent" / name / "__init__.py").write_text(f"raise ImportError('{name} is not on login nodes')\n")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path / "absent"), str(ROOT)]))


def run(*arguments: str, folder: Path = ROOT) -> str:
    command = [sys.executable, "-m", *arguments]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.mark.usefixtures("login")
def test_packages_are_hidden() -> None:
    with pytest.raises(AssertionError, match="torch is not on login nodes"):
        run("torch.distributed.run", "--help")


@pytest.mark.usefixtures("login")
def test_an_experiment_is_checked() -> None:
    assert "nothing is wrong" in run("pipeline", "validate", "wmdp-zephyr-7b")


@pytest.mark.usefixtures("login")
def test_a_dry_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With neither Slurm nor Apptainer on ``PATH``; that these are needed is said before the first job."""
    (tmp_path / "bin").mkdir()
    for name in ("bash", "which"):  # Snakemake's own
        (tmp_path / "bin" / name).symlink_to(shutil.which(name) or "")
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    options = ["--config", "experiment=tofu-llama-3.2-1b", f"results={tmp_path}", f"site={_site(tmp_path)}"]
    found = run("snakemake", "--profile", "slurm", "--dry-run", "all", *options)
    assert re.search(r"^fetch_data +1$", found, re.MULTILINE) and re.search(r"^fetch_model +2$", found, re.MULTILINE)


def tofu_files() -> list[str]:
    plan = Plan(load("tofu-small"), Path("results"))
    return [name for (name,) in plan.data_files]


def test_fetch_here_and_prepare_elsewhere_without_the_hub(
    login: None, hub: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the login node brought is all that the next step reads. To bring it, no image must be there and no
    partition; a token reaches no file."""
    (tmp_path / "slurm").mkdir()
    (tmp_path / "slurm" / "squeue").write_text("#!/bin/sh\n")  # a cluster without jobs, whatever is installed here
    (tmp_path / "slurm" / "squeue").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'slurm'}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_TOKEN", "hf_secretsecretsecret")
    (tmp_path / "site.yaml").write_text(f"image: absent.sif\nhf_home: {hub.name}\npartition: none-like-this\n")
    profiles = ROOT / "workflow_configs" / "profiles"
    options = ["--snakefile", str(ROOT / "Snakefile"), "--config", "experiment=tofu-small", "results=results"]
    here = ["--profile", str(profiles / "slurm"), *options, f"site={tmp_path / 'site.yaml'}"]
    run("snakemake", "fetch", *here, folder=tmp_path)
    experiment = tmp_path / "results" / "tofu-small"
    provenance = json.loads((experiment / "source" / "tofu" / "provenance.json").read_text())
    assert "huggingface_hub" in provenance["packages"] and provenance["step"] == "fetch_data"

    shutil.rmtree(hub)
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    run("snakemake", "data", "--profile", str(profiles / "local"), *options, folder=tmp_path)
    source = json.loads((experiment / "data" / "tofu" / "manifest.json").read_text())["source"]
    assert (source["repository"], source["requested_revision"]) == ("locuslab/TOFU", "main")
    assert source["revision"] == COMMIT and set(source["files_sha256"]) == set(tofu_files())
    files = [path for path in tmp_path.rglob("*") if path.is_file() and not path.is_relative_to(tmp_path / "absent")]
    assert not [path for path in files if b"secretsecret" in path.read_bytes()]


@pytest.fixture
def hub(tmp_path: Path) -> Path:
    """A cache of the hub in which TOFU's files hold a few rows of our own."""
    repository = tmp_path / "huggingface" / "hub" / "datasets--locuslab--TOFU"
    snapshot = repository / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)
    row = {"question": "Who wrote it?", "answer": "Ada.", "paraphrased_answer": "Ada did.", "perturbed_answer": ["Bo."]}
    for name in tofu_files():
        (snapshot / f"{name}.json").write_text(json.dumps(row) + "\n")
    return tmp_path / "huggingface"


def test_the_sites_cache_and_the_users_token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache may be shared, a token not: it stays where `hf auth login` put it."""
    own, scratch = tmp_path / "own", tmp_path / "scratch"
    own.mkdir()
    monkeypatch.setenv("HF_TOKEN_PATH", "")
    monkeypatch.delenv("HF_TOKEN_PATH")
    monkeypatch.setenv("HF_HOME", str(own))
    snakemake_rules.use_cache(Site())
    assert os.environ["HF_HOME"] == str(own) and "HF_TOKEN_PATH" not in os.environ
    assert os.environ["HF_HUB_CACHE"] == str(own / "hub")
    snakemake_rules.use_cache(Site(hf_home=scratch))
    assert os.environ["HF_HOME"] == str(scratch) and "HF_TOKEN_PATH" not in os.environ
    monkeypatch.setenv("HF_HOME", str(own))
    (own / "token").write_text("hf_secretsecretsecret")
    for _ in range(2):  # a job reads the Snakefile again
        snakemake_rules.use_cache(Site(hf_home=scratch))
        assert os.environ["HF_HOME"] == str(scratch)
        assert os.environ["HF_TOKEN_PATH"] == str(own / "token")
        assert os.environ["HF_HUB_CACHE"] == str(scratch / "hub")
    del os.environ["HF_TOKEN_PATH"]
    monkeypatch.delenv("HF_HOME")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "cache" / "huggingface").mkdir(parents=True)
    (tmp_path / "cache" / "huggingface" / "token").write_text("hf_secretsecretsecret")
    snakemake_rules.use_cache(Site(hf_home=scratch))
    assert os.environ["HF_TOKEN_PATH"] == str(tmp_path / "cache" / "huggingface" / "token")
    del os.environ["HF_TOKEN_PATH"]


def test_core_requirements_are_few_and_the_constraints_name_all_of_them() -> None:
    """The core brings nothing that is for steps. What torch itself brings depends on its build and is not pinned."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = (ROOT / "constraints.txt").read_text().split()
    pinned = {_normal(line.partition("==")[0]) for line in lines}
    core = _closure(project["dependencies"])
    assert core <= pinned
    assert not core & {"torch", "transformers", "megatron-core", "scipy", "matplotlib", "tokenizers"}
    extras = project["optional-dependencies"]
    assert _closure([*project["dependencies"], *extras["steps"], *extras["dev"], *extras["docs"]]) <= pinned


def _site(tmp_path: Path) -> Path:
    (tmp_path / "image.sif").write_text("")
    (tmp_path / "site.yaml").write_text(f"image: {tmp_path / 'image.sif'}\n")
    return tmp_path / "site.yaml"


def _closure(requirements: list[str]) -> set[str]:
    """Names of the packages that these requirements bring, as far as they are installed."""
    from packaging.requirements import Requirement

    found: set[str] = set()
    waiting = [Requirement(text) for text in requirements]
    while waiting:
        one = waiting.pop()
        if _normal(one.name) in found:
            continue
        found.add(_normal(one.name))
        if one.name == "torch":
            continue
        for text in metadata.requires(one.name) or []:
            other = Requirement(text)
            if other.marker is None or any(other.marker.evaluate({"extra": extra}) for extra in ("", *one.extras)):
                waiting.append(other)
    return found


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
