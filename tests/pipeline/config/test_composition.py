"""Experiments that build on others, and experiments at mini scale."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from megatron_ext.schema.safe_yaml import Loader
from pipeline.config.composition import STEPS
from pipeline.config.load import CONFIGS, load
from pipeline.config.located_yaml import ConfigError
from pipeline.workflow.plan import Plan

EXPERIMENTS = CONFIGS / "experiments"


def built(folder: Path, **entries: object) -> Path:
    path = folder / "mine.yaml"
    path.write_text(yaml.safe_dump({"name": "mine", "title": "Mine", "base": "mini", **entries}))
    return path


def test_what_a_file_says_goes_over_its_base(tmp_path: Path) -> None:
    """Mappings merge, lists are replaced, and the base's name is not the experiment's."""
    config = load(
        built(tmp_path, methods=["npo"], seeds=[3], unlearning={"epochs": 4}), settings=["data.max_length=64"]
    )
    base = load("mini").experiment
    experiment = config.experiment
    assert (experiment.name, experiment.title, experiment.seeds) == ("mine", "Mine", [3])
    assert [run.id for run in config.runs] == ["npo"] and experiment.training == base.training
    assert experiment.unlearning == {**base.unlearning, "epochs": 4} and experiment.data.max_length == 64


@pytest.mark.parametrize(
    ("base", "named"),
    [("minni", "did you mean 'mini'"), ("mine.yaml", "builds on this file itself"), (3, "the name or the file")],
)
def test_a_base_that_cannot_be(base: object, named: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=named) as error:
        load(built(tmp_path, base=base))
    assert "mine.yaml:1: base" in str(error.value)


def test_a_mistake_in_a_base_is_found_in_its_file(tmp_path: Path) -> None:
    other = tmp_path / "other.yaml"
    other.write_text((EXPERIMENTS / "mini.yaml").read_text().replace("split: forget10", "split: forget11"))
    with pytest.raises(ConfigError, match=r"other.yaml:\d+: split: unknown split 'forget11'"):
        load(built(tmp_path, base="other.yaml"))


def test_mini_scale_keeps_methods_and_seeds_and_takes_models_data_and_steps(tmp_path: Path) -> None:
    full = load("blur-table-2-forget05", settings=["seeds=[0, 1]"])
    small = load("blur-table-2-forget05", settings=["seeds=[0, 1]", "scale=mini"])
    stand_in = load("mini").experiment
    assert [run.id for run in small.runs] == [run.id for run in full.runs] and small.experiment.seeds == [0, 1]
    assert small.experiment.name == "blur-table-2-forget05-mini"
    for key in ("benchmark", "split", "model", "training", "data", "runtime"):
        assert getattr(small.experiment, key) == getattr(stand_in, key), key
    methods = {run.id: run.method for run in small.runs}
    known = {run.id: run.method for run in load("mini").runs}
    assert methods["blur-npo"] == known["blur-npo"] and methods["ga"] == known["ga"]
    # A variant keeps what makes it one, and learns at the mini's rate.
    assert methods["simnpo-blur"].forget.model_dump() == {"name": "simnpo", "beta": 2.5, "delta": 2.0}
    assert methods["simnpo-blur"].training.optimizer == known["simnpo"].training.optimizer


def test_a_variant_at_mini_scale_may_remove_a_loss_or_be_wrong() -> None:
    """Only this has a variant whose losses are no mappings: null removes one at either scale, a number is refused."""

    def variant(overrides: object) -> list[str]:
        return [f"methods=[{{method: npo, variant: x, overrides: {overrides}}}]", "scale=mini"]

    assert load("tofu-llama-3.2-1b", settings=variant("{retain: null}")).runs[0].method.retain is None
    with pytest.raises(ConfigError, match=r"overrides\.forget: 5 is not allowed"):
        load("tofu-llama-3.2-1b", settings=variant("{forget: 5}"))
    with pytest.raises(ConfigError, match=r"overrides: 5 is not allowed"):
        load("tofu-llama-3.2-1b", settings=variant("5"))


def test_results_at_mini_scale_are_named_as_an_experiment() -> None:
    """A report's command, and evidence, name an experiment by its results."""
    settings = ["scale=mini"]
    wanted = load("blur-table-4", settings=settings)
    assert load("blur-table-4-mini", settings=settings) == wanted
    assert load("blur-table-4-mini").experiment == wanted.experiment


def test_settings_go_over_the_stand_ins_values() -> None:
    config = load("blur-table-4", settings=["unlearning.epochs=1", "scale=mini", "methods.npo.forget.beta=0.7"])
    assert {run.method.training.epochs for run in config.runs} >= {1} and config.experiment.unlearning["epochs"] == 1
    (npo,) = [run.method for run in config.runs if run.id == "npo"]
    assert npo.forget.model_dump()["beta"] == 0.7


def test_a_name_that_is_set_is_that_of_the_scale_too() -> None:
    """Results at full scale are in the folder of that very name."""
    settings = ["name=foo", " title = Foo", "unlearning.epochs=1"]
    small = load("blur-table-4", settings=[*settings, "scale=mini"]).experiment
    assert (small.name, small.title) == ("foo-mini", "Foo, at mini scale") and small.unlearning["epochs"] == 1
    full = load("blur-table-4", settings=settings).experiment
    assert (full.name, full.title) == ("foo", "Foo")


def test_what_is_no_scale_or_has_no_mini_is_refused() -> None:
    with pytest.raises(ConfigError, match="scale: unknown value 'small'"):
        load("blur-table-4", settings=["scale=small"])
    with pytest.raises(ConfigError, match="names no 'mini'"):
        load("smollm2-custom", settings=["scale=mini"])
    assert load("mini", settings=["scale=full"]).experiment == load("mini").experiment


def test_the_keys_of_steps_are_keys_of_methods() -> None:
    """A key that is renamed would stay an experiment's own at mini scale."""
    from pipeline.config.method_schema import MethodTraining

    assert set(STEPS) <= set(MethodTraining.model_fields)


@pytest.mark.slow
def test_every_experiment_on_a_base_is_planned_as_it_is_and_at_mini_scale() -> None:
    """None of the papers' tables rots; those without a base are validated by ``make lint``."""
    files = [path for path in EXPERIMENTS.glob("*.yaml") if not path.stem.startswith("mini")]
    found = [path.stem for path in files if "base" in yaml.load(path.read_text(), Loader)]
    assert len(found) > 30
    for name in found:
        jobs = []
        for settings in ([], ["scale=mini"]):
            config = load(name, settings=settings)
            jobs.append([job for job in Plan(config, Path("results")).jobs if job.startswith("unlearned/")])
        assert jobs[0] == jobs[1] and jobs[0], name
