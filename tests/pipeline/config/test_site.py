"""The site file: every mistake with its place, paths that mean the same on every node, the example as good as none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.config import site
from pipeline.config.located_yaml import ConfigError
from pipeline.config.site import Site

EXAMPLE = Path(__file__).parents[3] / "workflow_configs" / "site.example.yaml"


@pytest.fixture
def load(tmp_path: Path) -> Any:
    def _load(**values: Any) -> Site:
        path = tmp_path / "site.yaml"
        path.write_text(yaml.safe_dump(values) if values else "{}")
        return site.load(path)

    return _load


def test_without_a_file_everything_has_its_default(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(site, "FILE", tmp_path / "site.yaml")
    assert site.find() is None and site.load(None) == Site()
    assert (Site().gpus_per_node, Site().time_factor, Site().warn_seconds) == (8, 1.0, 120)
    (tmp_path / "site.yaml").write_text("partition: gpu\n")
    assert site.find() == tmp_path / "site.yaml" and site.load(site.find()).partition == "gpu"
    assert site.find(tmp_path / "other.yaml") == tmp_path / "other.yaml"


def test_a_file_of_comments_alone_is_one_with_every_default(tmp_path: Path) -> None:
    for text in ("", "# partition: gpu\n"):
        (tmp_path / "site.yaml").write_text(text)
        assert site.load(tmp_path / "site.yaml") == Site()


def test_the_example_states_the_defaults_and_names_every_key() -> None:
    assert site.load(EXAMPLE) == Site()
    text = EXAMPLE.read_text()
    for key in Site.model_fields:
        assert f"\n{key}:" in text or f"# {key}:" in text, key


def test_the_examples_commented_lines_are_right(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SCRATCH", "/scratch/me")
    lines = [line.removeprefix("# ") for line in EXAMPLE.read_text().splitlines()]
    keys = [line for line in lines if line.partition(":")[0] in Site.model_fields]
    (tmp_path / "site.yaml").write_text("\n".join(keys))
    found = site.load(tmp_path / "site.yaml")
    assert (found.partition, found.gpu_type, found.cpus_per_node) == ("gpu", "h100", 96)
    assert found.hf_home == Path("/scratch/me/huggingface")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"partiton": "gpu"}, "site.yaml:1: partiton: unknown key; did you mean 'partition'?"),
        ({"gpus_per_node": -1}, "gpus_per_node: -1 is not allowed: input should be greater than or equal to 0"),
        ({"gpus_per_node": "8"}, "gpus_per_node: '8' is not allowed: input should be a valid integer"),
        ({"account": 12}, "account: 12 is not allowed: input should be a valid string; put it in quotes"),
        ({"partition": "a b"}, "partition: 'a b' is not allowed"),
        ({"gpu_type": "h100:8"}, "gpu_type: 'h100:8' is not allowed"),
        ({"time_factor": 0}, "time_factor: 0 is not allowed"),
        ({"warn_seconds": 5}, "warn_seconds: 5 is not allowed: input should be greater than or equal to 10"),
        ({"extra": "--partition=gpu"}, "extra: '--partition=gpu' is not allowed: set 'partition' instead"),
        ({"extra": "--exclusive -pgpu"}, "extra: '-pgpu' is not allowed: set 'partition' instead"),
        ({"extra": "--signal=B:TERM@60"}, "extra: '--signal=B:TERM@60' is not allowed: set 'warn_seconds' instead"),
        ({"extra": "--nodes 2"}, "extra: '--nodes' is not allowed: the workflow sets it"),
        ({"extra": "--mail-user='me"}, "is not a command line: No closing quotation"),
        ({"hf_home": "$UNSET_HERE/hf"}, "site.yaml:1: hf_home: '$UNSET_HERE/hf': the variable UNSET_HERE is not set"),
        ({"binds": ["/a", "${UNSET_HERE}"]}, "site.yaml:3: binds[1]: '${UNSET_HERE}': the variable UNSET_HERE is not"),
    ],
)
def test_a_mistake_is_named_with_its_place(load: Any, values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(**values)
    assert len(caught.value.problems) == 1 and message in caught.value.problems[0]


def test_a_missing_file_is_a_mistake(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.yaml: cannot be read: No such file"):
        site.load(tmp_path / "none.yaml")


def test_further_options_are_kept_safe_from_the_shell(load: Any) -> None:
    """The executor puts them into a command line for a shell."""
    given = "--exclude=n[1-3] --mail-user=me@example.org --comment2='$(rm -rf x); y'"
    assert load(extra=given).extra == "'--exclude=n[1-3]' --mail-user=me@example.org '--comment2=$(rm -rf x); y'"


def test_paths_are_absolute(load: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setenv("WORK", "/projects/me")
    found = load(image="images/a.sif", hf_home="~/hf", binds=["$WORK/data", "${WORK}/m:/models:ro", "here"])
    assert found.image == tmp_path / "images/a.sif"
    assert found.hf_home == Path("/home/me/hf")
    assert found.binds == ["/projects/me/data", "/projects/me/m:/models:ro", f"{tmp_path}/here"]


def test_models_are_where_the_hub_library_keeps_them(load: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    for name in ("HF_HOME", "XDG_CACHE_HOME", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_DATASETS_CACHE"):
        monkeypatch.delenv(name, raising=False)
    assert Site().huggingface == Path("/home/me/.cache/huggingface")
    monkeypatch.setenv("XDG_CACHE_HOME", "/scratch/me/cache")
    assert Site().hub == Path("/scratch/me/cache/huggingface/hub")
    monkeypatch.setenv("HF_HOME", "/cache")
    assert Site().huggingface == Path("/cache") and Site().datasets == Path("/cache/datasets")
    monkeypatch.setenv("HUGGINGFACE_HUB_CACHE", "~/old")
    assert Site().hub == Path("/home/me/old")
    monkeypatch.setenv("HF_HUB_CACHE", "$HOME/hub")
    monkeypatch.setenv("HF_DATASETS_CACHE", "/data")
    assert (Site().hub, Site().datasets) == (Path("/home/me/hub"), Path("/data"))
    own = load(hf_home="/own")
    assert (own.huggingface, own.hub, own.datasets) == (Path("/own"), Path("/own/hub"), Path("/own/datasets"))
