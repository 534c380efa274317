"""Values that a command line gives in place of an experiment's own."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from megatron_ext.schema.safe_yaml import Loader
from pipeline.__main__ import main
from pipeline.config.load import CONFIGS, load
from pipeline.config.located_yaml import ConfigError
from pipeline.workflow import snakemake_rules
from pipeline.workflow.plan import Plan


def problems(*settings: str) -> list[str]:
    with pytest.raises(ConfigError) as error:
        load("mini", settings=settings)
    return error.value.problems


def test_values_are_typed_as_in_yaml_and_leave_the_rest_as_it_is() -> None:
    """A method that the file gives by its overrides keeps those that are not set."""
    settings = [
        *("methods.blur-npo.rule.gamma=0.5", "methods.npo.training.optimizer.learning_rate=1e-5", "seeds=[3, 4]"),
        *(
            "layout={tensor: 2}",
            "unlearning.epochs=2",
            "training.target.steps=9",
            "evaluation.options.max_new_tokens=4",
        ),
    ]
    config, before = load("mini", settings=settings), load("mini")
    runs = {run.id: run.method for run in config.runs}
    old = {run.id: run.method for run in before.runs}
    assert runs["blur-npo"].rule.gamma == 0.5  # type: ignore[attr-defined] # BLUR's
    assert runs["blur-npo"].training.optimizer.learning_rate == 3e-4
    assert runs["npo"].training.optimizer.learning_rate == 1e-5
    assert {method.training.epochs for method in runs.values()} == {2}
    assert runs["rmu"].forget == old["rmu"].forget
    assert (config.experiment.seeds, config.layout.tensor, config.layout.ranks) == ([3, 4], 2, 2)
    assert config.experiment.training.target is not None and config.experiment.training.target.steps == 9
    assert before.experiment.training.retrain == config.experiment.training.retrain


def test_a_method_by_its_name_alone_and_its_variants(tmp_path: Path) -> None:
    """Without a variant every one of the method is meant, but for one that has that very name."""
    document = yaml.load((CONFIGS / "experiments" / "mini.yaml").read_text(), Loader)
    document["methods"] = ["npo", {"method": "npo", "variant": "b"}, {"method": "ga", "variant": "x.1"}, "graddiff"]
    document["methods"] += [{"method": "ga", "variant": "y"}]
    file = tmp_path / "experiments" / "mine.yaml"
    file.parent.mkdir()
    file.write_text(yaml.safe_dump(document))
    settings = [f"methods.{name}.training.epochs={i}" for i, name in enumerate(("npo", "npo-b", "ga", "ga-x.1"), 1)]
    config = load(file, settings=settings)
    assert {run.id: run.method.training.epochs for run in config.runs} == {
        "npo": 1,
        "npo-b": 2,
        "ga-x.1": 4,
        "graddiff": 10,
        "ga-y": 3,
    }


def test_lists_and_their_entries() -> None:
    config = load("mini-robust", settings=["methods=[ga]", "robustness.quantise.0=int4", "robustness.quantise.1=int8"])
    assert [run.id for run in config.runs] == ["ga"]
    assert [attack.id for attack in config.experiment.robustness.quantised] == ["int4", "int8"]


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("methods.blur-npo.rule.gamma=x", "--set methods.blur-npo.rule.gamma: 'x' is not allowed: "),
        ("methods.blur-npo.rule.gama=1", "--set methods.blur-npo.rule.gama: unknown key; did you mean 'gamma'?"),
        ("methods.blur-np.rule.gamma=1", "--set methods.blur-np.rule.gamma: unknown method 'blur-np'; did you mean"),
        ("methods.blur-npo=1", "--set methods.blur-npo: a key is missing"),
        ("seeds=3", "--set seeds: 3 is not allowed: "),
        ("seeds.7=3", "--set seeds.7: '7' is no entry of a list of 1"),
        ("split=forget11", "--set split: unknown split 'forget11'"),
        ("layout=3", "--set layout: model 'mini-llama' has no layout for 3 ranks"),
        ("name=cache", "--set name: 'cache' is not allowed: the folder of results that all experiments share"),
        ("splitt=a", "--set splitt: unknown key; did you mean 'split'?"),
        ("training.base.steps=0", "--set training.base.steps: 0 is not allowed"),
        ("runtime.recompute=true", "--set runtime.recompute: was renamed to 'runtime.recompute_activations'"),
        ("seeds", "--set seeds: expected KEY=VALUE"),
        ("=3", "--set =3: expected KEY=VALUE"),
        ("seeds=[", "--set seeds=[: the value is not YAML"),
        ("seeds=&a [*a]", "--set seeds: an alias stands inside of what it stands for"),
        ("training.target={steps: 5, steps: 7}", "--set training.target: steps: given twice in one mapping"),
        ("data={[1]: 2}", "--set data: a key must be text; a text that begins with"),
        ("data={true: 2}", "--set data: true: a key must be text; this one needs quotes"),
        ("seeds=", "--set seeds: None is not allowed"),
        ("training.target.steps=1:30", "--set training.target.steps: '1:30' is not allowed"),
    ],
)
def test_a_mistake_is_said_with_its_key(setting: str, message: str) -> None:
    found = problems(setting)
    assert [line for line in found if line.startswith(message)], found


def test_what_was_set_is_in_the_record_of_the_report_and_only_then(tmp_path: Path) -> None:
    """An experiment as its file says has the specification that it had, so that nothing runs again."""
    setting = "methods.npo.training.epochs=2"
    jobs = Plan(load("mini", settings=[setting]), tmp_path).jobs
    assert jobs["report"].spec.config["set"] == [setting]  # type: ignore[attr-defined] # a report's
    assert jobs["unlearned/npo/seed-0"].spec.epochs == 2  # type: ignore[attr-defined] # a method's
    assert "set" not in Plan(load("mini"), tmp_path).jobs["report"].spec.config  # type: ignore[attr-defined] # as above


@pytest.mark.parametrize(("given", "seeds"), [("seeds=[5]", [5]), (["seeds=[5]", "seeds=[6, 7]"], [6, 7]), ([], [0])])
def test_snakemakes_own_option(given: object, seeds: list[int]) -> None:
    plan, _ = snakemake_rules.read({"experiment": "mini", "set": given})
    assert plan.config.experiment.seeds == seeds


def test_snakemakes_own_option_says_what_is_wrong(capsys: pytest.CaptureFixture[str]) -> None:
    for given, message in ((3, "--config set: 3 is not allowed"), ("seeds=x", "--set seeds: 'x' is not allowed")):
        with pytest.raises(SystemExit):
            snakemake_rules.read({"experiment": "mini", "set": given})
        assert message in capsys.readouterr().err


@pytest.mark.parametrize("command", ["validate", "run"])
def test_commands_take_settings(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([command, "mini", "--set", "seeds=[1, 1]"]) == 2
    assert "--set seeds: [1, 1] names a seed twice" in capsys.readouterr().err
