"""The environment of containers: what they see of the machine, and nothing that another node left behind."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from pipeline.config.load import load
from pipeline.config.located_yaml import ConfigError
from pipeline.config.site import ROOT, Site
from pipeline.launch import image, ranks
from pipeline.workflow import containers, snakemake_rules
from pipeline.workflow.plan import Plan


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory, with nothing of the caller's own settings."""
    for name in [*os.environ]:
        if name.startswith(("APPTAINER", "SLURM", "NCCL", "CUDA", "PYTORCH_", "NVTE_")):
            monkeypatch.delenv(name)
    monkeypatch.setattr(containers.tempfile, "gettempdir", lambda: str(tmp_path / "temporary"))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_DATASETS_CACHE", "HF_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    for name in ("hf/hub", "hf/datasets", "work", "outer/results", "temporary"):
        (tmp_path / name).mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path


def plan(results: Path) -> Plan:
    return Plan(load("mini"), results)


def test_what_is_bound_is_there_once_and_absolute(here: Path) -> None:
    (here / "data").mkdir()
    given = ["/nonexistent", str(here / "data"), str(here / "hf/hub"), f"{here}/data:/d:ro", "/nonexistent:/x", "/"]
    found = containers.binds(Site(binds=given), plan(here / "outer" / "results"))
    named = {str(ROOT), f"{here}/data:/d:ro"}
    named |= {f"{here}/{name}" for name in ("work", "outer/results", "hf/hub", "hf/datasets", "data", "temporary")}
    assert set(found) == named and len(found) == len(named)


def test_results_that_are_not_there_yet_are_bound_by_the_folder_that_will_hold_them(here: Path) -> None:
    assert str(here / "outer") in containers.binds(Site(), plan(Path("../outer/new/results")))


def test_a_link_is_bound_with_its_target(here: Path) -> None:
    (here / "work" / "results").symlink_to(here / "outer" / "results")
    found = containers.binds(Site(), plan(Path("results")))
    assert str(here / "outer" / "results") in found
    assert str(here / "work" / "results") not in found, "is in the working directory, which is bound"


def test_the_callers_own_binds_stay(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (here / "site").mkdir()
    monkeypatch.setenv("APPTAINER_BIND", f"{here}/site,{here}/site:/other")
    first = containers.binds(Site(), plan(here / "outer"))
    assert {f"{here}/site", f"{here}/site:/other"} <= set(first)
    monkeypatch.setenv("APPTAINER_BIND", ",".join(first))
    assert sorted(containers.binds(Site(), plan(here / "outer"))) == sorted(first), "a job starts with its parent's"


def test_no_container_sees_the_hubs_token(here: Path) -> None:
    """A login leaves it in `HF_HOME`, where a step that is not allowed to use it could read it."""
    for name in ("token", "stored_tokens"):
        (here / "hf" / name).write_text("hf_secret")
    found = [Path(text) for text in containers.binds(Site(), plan(here / "outer" / "results"))]
    assert not [path for path in found if (here / "hf" / "token").is_relative_to(path)]
    assert not [text for text in map(str, found) if text.startswith("/dev/null")]
    (here / "hf" / "datasets").rmdir()
    made = containers.environment(Site(), plan(here / "outer"), here / "a.sif")
    assert f"{here}/hf/datasets" not in made["APPTAINER_BIND"] and "APPTAINERENV_HF_DATASETS_CACHE" not in made


def test_a_token_in_a_folder_that_is_bound_is_covered(here: Path) -> None:
    """The cache may lie in the clone, or results in a home folder, which is then bound as a whole."""
    for name in ("token", "stored_tokens"):
        (here / "hf" / name).write_text("hf_secret")
    found = containers.binds(Site(), plan(here / "results"))
    assert str(here) in found, "the nearest folder that is there"
    assert {f"/dev/null:{here}/hf/token", f"/dev/null:{here}/hf/stored_tokens"} <= set(found)


def test_a_token_that_a_login_left_elsewhere_is_covered_too(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It stays where it is when the site names another folder of the hub."""
    for name in ("token", "stored_tokens"):
        (here / "work" / name).write_text("hf_secret")
    monkeypatch.setenv("HF_TOKEN_PATH", str(here / "work" / "token"))
    found = containers.binds(Site(hf_home=here / "hf"), plan(here / "outer"))
    assert {f"/dev/null:{here}/work/token", f"/dev/null:{here}/work/stored_tokens"} <= set(found)
    (here / "work" / "a,b").write_text("hf_secret")
    monkeypatch.setenv("HF_TOKEN_PATH", str(here / "work" / "a,b"))
    with pytest.raises(ConfigError, match="a,b': Apptainer cannot bind"):
        containers.binds(Site(hf_home=here / "hf"), plan(here / "outer"))


@pytest.mark.parametrize("hf_home", [None, "scratch"])
def test_what_is_fetched_is_what_containers_see(
    hf_home: str | None, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The hub's library has a variable for each folder, which a shell may set as well."""
    monkeypatch.setenv("HF_HUB_CACHE", str(here / "other-hub"))
    monkeypatch.setenv("HF_DATASETS_CACHE", str(here / "other-datasets"))
    site = Site(hf_home=None if hf_home is None else here / hf_home)
    for folder in ("other-hub", "other-datasets", "scratch/hub", "scratch/datasets"):
        (here / folder).mkdir(parents=True)
    snakemake_rules.use_cache(site)
    made = containers.environment(site, plan(here / "outer"), here / "a.sif")
    for name in ("HF_HOME", "HF_HUB_CACHE", "HF_DATASETS_CACHE"):
        assert made[f"APPTAINERENV_{name}"] == os.environ[name], name
    wanted = ("other-hub", "other-datasets") if hf_home is None else ("scratch/hub", "scratch/datasets")
    assert {str(here / name) for name in wanted} <= set(made["APPTAINER_BIND"].split(","))
    assert os.environ["HF_HUB_CACHE"] == str(here / wanted[0])


def test_the_users_data_are_bound(here: Path) -> None:
    (here / "tofu").mkdir()
    for name in ("full", "forget10", "retain90", "holdout10"):
        (here / "tofu" / f"{name}.json").write_text("{}\n")
    for name in ("forget10", "retain", "real_authors", "world_facts"):
        (here / "tofu" / f"{name}_perturbed.json").write_text("{}\n")
    made = Plan(load("tofu-small", here / "tofu"), here / "outer")
    assert str(here / "tofu") in containers.binds(Site(), made)


def test_the_users_tasks_are_bound(here: Path) -> None:
    """Of a further benchmark the folder of its questions, and that of its task files."""
    for name in ("questions", "tasks"):
        (here / name).mkdir()
    source, options = {"kind": "folder", "path": str(here / "questions")}, {"tasks": ["own"]}
    own = {"name": "own", "title": "Own", "family": "lm_eval", "splits": {"own": 1}, "source": source}
    settings = [f"utility={json.dumps([own | {'options': options | {'include_path': str(here / 'tasks')}}])}"]
    found = containers.binds(Site(), Plan(load("mini", settings=settings), here / "outer"))
    assert {str(here / name) for name in ("questions", "tasks")} <= {*found}


def test_a_folder_that_a_bind_cannot_name(here: Path) -> None:
    (here / "a,b").mkdir()
    with pytest.raises(ConfigError, match="a,b/results': Apptainer cannot bind a path that has ',' or ':'"):
        (here / "a,b" / "results").mkdir()
        containers.binds(Site(), plan(here / "a,b" / "results"))


def test_the_environment(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(containers, "DRIVER", here / "none")
    monkeypatch.setattr(containers.os, "geteuid", lambda: 1000)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,3")
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    monkeypatch.setenv("NCCL_SOCKET_IFNAME", "ib0")
    monkeypatch.setenv("PYTORCH_CUDA_ALLOC_CONF", "max_split_size_mb:64")
    monkeypatch.setenv("NVTE_FUSED_ATTN", "0")
    monkeypatch.setenv("SECRET", "not for steps")
    image = here / "a.sif"
    image.with_suffix(".json").write_text(json.dumps({"sha256": "abc"}))
    found = containers.environment(Site(hf_home=here / "hf"), plan(here / "outer"), image)
    wanted = {
        "APPTAINER_CLEANENV": "1",
        "APPTAINER_CONTAINALL": "1",
        "APPTAINERENV_HF_HOME": f"{here}/hf",
        "APPTAINERENV_HF_HUB_CACHE": f"{here}/hf/hub",
        "APPTAINERENV_HF_DATASETS_CACHE": f"{here}/hf/datasets",
        "APPTAINERENV_HF_HUB_OFFLINE": "1",
        "APPTAINERENV_PYTHONNOUSERSITE": "1",
        "APPTAINERENV_TMPDIR": f"{here}/temporary",
        "APPTAINERENV_CUDA_VISIBLE_DEVICES": "2,3",
        "APPTAINERENV_SLURM_JOB_ID": "17",
        "APPTAINERENV_NCCL_SOCKET_IFNAME": "ib0",
        "APPTAINERENV_NCCL_DEBUG": "WARN",
        "APPTAINERENV_PYTORCH_CUDA_ALLOC_CONF": "max_split_size_mb:64",
        "APPTAINERENV_NVTE_FUSED_ATTN": "0",
        "APPTAINERENV_UNLEARN_IMAGE": str(image),
        "APPTAINERENV_UNLEARN_IMAGE_SHA256": "abc",
    }
    assert wanted.items() <= found.items()
    assert not {"APPTAINER_NV", "APPTAINER_USERNS", "APPTAINERENV_SECRET"} & found.keys()
    assert {f"{here}/hf/hub", f"{here}/hf/datasets"} <= set(found["APPTAINER_BIND"].split(","))
    assert found["PATH"] == ranks.shielded(os.environ["PATH"])
    assert {name.removeprefix("APPTAINERENV_") for name in found if name.startswith("APPTAINERENV_")} <= {
        *containers.SET,
        *containers.PASSED,
        "NCCL_SOCKET_IFNAME",
        "NCCL_DEBUG",
        "PYTORCH_CUDA_ALLOC_CONF",
        "NVTE_FUSED_ATTN",
    }


def test_gpus_are_given_where_there_is_a_driver_and_root_gets_a_user_namespace(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(containers, "DRIVER", here)
    monkeypatch.setattr(containers.os, "geteuid", lambda: 0)
    found = containers.environment(Site(), plan(here / "outer"), here / "a.sif")
    assert (found["APPTAINER_NV"], found["APPTAINER_USERNS"]) == ("1", "1")
    assert "APPTAINERENV_UNLEARN_IMAGE_SHA256" not in found, "an image from elsewhere has no digest beside it"


def test_what_another_node_left_goes() -> None:
    environ = {
        "APPTAINER_NV": "1",
        "APPTAINERENV_CUDA_VISIBLE_DEVICES": "7",
        "APPTAINERENV_NCCL_SOCKET_IFNAME": "eth9",
        "APPTAINERENV_UNLEARN_IMAGE_SHA256": "old",
        "APPTAINERENV_MINE": "kept",
        "OTHER": "kept",
    }
    containers.enter({"APPTAINER_CLEANENV": "1", "APPTAINERENV_NCCL_DEBUG": "WARN"}, environ)
    assert environ == {
        "APPTAINERENV_MINE": "kept",
        "OTHER": "kept",
        "APPTAINER_CLEANENV": "1",
        "APPTAINERENV_NCCL_DEBUG": "WARN",
    }


def test_an_image_is_named_by_its_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image, "IMAGES", tmp_path)
    link = tmp_path / "unlearn-cpu.sif"
    link.symlink_to("unlearn-cpu-111111111111.sif")
    assert image.image(Site(), gpus=False) == tmp_path / "unlearn-cpu-111111111111.sif"
    assert image.image(Site(), gpus=True) == tmp_path / "unlearn-gpu.sif", "not built: the name says which one"
    assert image.image(Site(image=link), gpus=True).name == "unlearn-cpu-111111111111.sif"


@pytest.mark.parametrize("name", ["a b.sif", "$(id).sif", "`id`", "a;id", "a'b", "a\nb", "ü.sif", "a{b}", "a*"])
def test_an_images_name_is_no_command(name: str, here: Path) -> None:
    """Only this names images by what a shell would run: Snakemake does not quote them."""
    with pytest.raises(ConfigError, match="image: "):
        containers.environment(Site(), plan(here / "outer"), here / name)


@pytest.mark.parametrize("name", ["$(id)", "a'b", 'a"b', "a`b"])
def test_a_working_directory_is_no_command(name: str, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (here / name).mkdir()
    monkeypatch.chdir(here / name)
    with pytest.raises(ConfigError, match="the working directory: "):
        containers.environment(Site(), plan(here / "outer"), here / "image.sif")
