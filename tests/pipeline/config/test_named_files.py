"""Experiments, methods, models and benchmarks anywhere on disk, with paths that start at the file that names them."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from megatron_ext.schema.safe_yaml import Loader
from pipeline.config.load import CONFIGS, load
from pipeline.config.located_yaml import ConfigError, read
from pipeline.config.named_files import placed
from pipeline.workflow.plan import Plan


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Write an experiment into ``a/`` with its files in ``a/`` and ``b/``; the working directory is another one."""

    def _write(**changes: object) -> Path:
        for name in ("a", "b", "here"):
            (tmp_path / name).mkdir(exist_ok=True)
        monkeypatch.chdir(tmp_path / "here")
        document = yaml.load((CONFIGS / "experiments" / "mini.yaml").read_text(), Loader)
        document |= {"benchmark": "benchmark.yaml", "model": "../b/model.yaml"}
        document["methods"] = ["ga", {"method": "../b/own.yaml", "overrides": {"training": {"epochs": 2}}}]
        (tmp_path / "a" / "any.yaml").write_text(yaml.safe_dump(document | changes))
        shutil.copyfile(CONFIGS / "benchmarks" / "mini.yaml", tmp_path / "a" / "benchmark.yaml")
        shutil.copyfile(CONFIGS / "models" / "mini-llama.yaml", tmp_path / "b" / "model.yaml")
        method = yaml.load((CONFIGS / "methods" / "npo.yaml").read_text(), Loader)
        (tmp_path / "b" / "own.yaml").write_text(yaml.safe_dump(method | {"name": "my-npo"}))
        return tmp_path / "a" / "any.yaml"

    return _write


def test_every_kind_of_file_by_its_path(write: Callable[..., Path]) -> None:
    """A file's name is its own, whatever the file is called; a setting names the method by its file."""
    config = load(write(), settings=["methods.own.rule.retain_weight=0.5"])
    assert (config.benchmark.name, config.model.name) == ("mini", "mini-llama")
    assert [run.id for run in config.runs] == ["ga", "my-npo"]
    assert config.runs[1].method.training.epochs == 2
    assert config.runs[1].method.rule.retain_weight == 0.5  # type: ignore[attr-defined] # a weighted sum's
    assert "unlearned/my-npo/seed-0" in Plan(config, Path("results")).jobs


@pytest.mark.parametrize("key", ["benchmark", "model"])
def test_a_file_that_is_not_there_is_named_with_its_whole_path(
    key: str, write: Callable[..., Path], tmp_path: Path
) -> None:
    with pytest.raises(ConfigError) as error:
        load(write(**{key: "../c/none.yaml"}))
    assert [line for line in error.value.problems if f"{key}: " in line and f"{tmp_path}/c/none.yaml" in line]


def test_folders_start_at_the_file_that_names_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where nothing is there but at the working directory, they start there, as they always did."""
    for name in ("b/beside", "here/beside", "here/elsewhere"):
        (tmp_path / name).mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "here")
    file = tmp_path / "b" / "model.yaml"
    folders = {"base": "beside", "target": "elsewhere"}
    retrain = {"forget": {"folder": "../none"}, "forget10": {"hub": "owner/name"}}
    file.write_text(
        yaml.safe_dump({"checkpoints": {"retrain": retrain, **{k: {"folder": v} for k, v in folders.items()}}})
    )

    checkpoints = placed("model", read(file)).data["checkpoints"]

    assert checkpoints["base"] == {"folder": f"{tmp_path}/b/beside"}
    assert checkpoints["target"] == {"folder": "elsewhere"}
    assert checkpoints["retrain"] == {"forget": {"folder": f"{tmp_path}/none"}, "forget10": {"hub": "owner/name"}}


def test_a_benchmarks_folder_starts_at_its_file(write: Callable[..., Path], tmp_path: Path) -> None:
    experiment = write()
    benchmark = yaml.load((CONFIGS / "benchmarks" / "tofu.yaml").read_text(), Loader)
    (tmp_path / "a" / "benchmark.yaml").write_text(
        yaml.safe_dump(benchmark | {"source": {"kind": "folder", "path": "../data"}})
    )
    with pytest.raises(ConfigError) as error:
        load(experiment)
    assert f"{tmp_path}/data" in str(error.value)
