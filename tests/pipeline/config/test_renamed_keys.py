"""An old key in any file is an error at its place that names the new one, and the only one that is reported for it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from megatron_ext.schema.renamed_keys import KEYS, renamed
from megatron_ext.schema.safe_yaml import Loader
from pipeline.config.load import CONFIGS, load
from pipeline.config.located_yaml import ConfigError, current, read
from pipeline.launch.specification import specification

ROWS = [(kind, row, new) for kind, rows in KEYS.items() for row, new in rows.items()]


@pytest.mark.parametrize(("kind", "row", "new"), ROWS, ids=lambda value: str(value))
def test_every_row_of_the_table(tmp_path: Path, kind: str, row: str, new: str) -> None:
    where, _, value = row.partition("=")
    *around, last = where.split(".")
    content: Any = {"before": 1, last: value or 7}
    for part in reversed(around):
        content = [content] if part == "*" else {part: content}
    path = tmp_path / "old.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    problems: list[str] = []
    found = current(kind, read(path), problems)
    key = where.replace(".*", "[0]")
    parents = key.rpartition(".")[0]
    now = f"{value!r} was renamed to {new!r}" if value else f"was renamed to '{parents + '.' if parents else ''}{new}'"
    line = len(around) - around.count("*") + 2
    assert problems == [f"{path}:{line}: {key}: {now}"]
    for part in around:
        content = found.data = found.data[0 if part == "*" else part]
    assert found.data == {"before": 1, **({last: new} if value else {new: 7})}
    assert renamed(kind, read(path).data)[0] != read(path).data


def test_old_names_around_each_other_are_said_at_once_and_alone(tmp_path: Path) -> None:
    """In the method's own file, in an experiment's overrides of it, and beside the new name."""
    experiment = yaml.load((CONFIGS / "experiments" / "mini.yaml").read_text(), Loader)
    experiment |= {"methods": ["old", {"method": "rmu", "overrides": {"scope": {"layer": 0, "train_layers": [0]}}}]}
    method = yaml.load((CONFIGS / "methods" / "rmu.yaml").read_text(), Loader)
    layers = method.pop("trainable_layers")
    method |= {"name": "old", "scope": {"layer": 0, "train_layers": [0], "matrices": layers["target_modules"]}}
    del experiment["unlearning"]["validation"]  # which goes with no method of trainable layers
    experiment["runtime"]["recompute"] = experiment["runtime"]["recompute_activations"] = False
    for kind, name, content in (("experiments", "mine", experiment), ("methods", "old", method)):
        (tmp_path / kind).mkdir()
        (tmp_path / kind / f"{name}.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    with pytest.raises(ConfigError) as error:
        load(tmp_path / "experiments" / "mine.yaml")
    said = [problem.split(": ", 1)[1] for problem in error.value.problems]
    assert said == [
        "runtime.recompute: was renamed to 'runtime.recompute_activations'",
        "scope: was renamed to 'trainable_layers'",
        "scope.layer: was renamed to 'trainable_layers.up_to'",
        "scope.train_layers: was renamed to 'trainable_layers.layers_to_transform'",
        "scope.matrices: was renamed to 'trainable_layers.target_modules'",
        "methods[1].overrides.scope: was renamed to 'trainable_layers'",
        "methods[1].overrides.scope.layer: was renamed to 'trainable_layers.up_to'",
        "methods[1].overrides.scope.train_layers: was renamed to 'trainable_layers.layers_to_transform'",
    ]


def test_options_of_a_benchmark(tmp_path: Path) -> None:
    benchmark = yaml.load((CONFIGS / "benchmarks" / "mini-wmdp.yaml").read_text(), Loader)
    benchmark["options"]["layout"] = benchmark["options"].pop("prompt_format")
    experiment = yaml.load((CONFIGS / "experiments" / "mini-wmdp.yaml").read_text(), Loader)
    for kind, name, content in (("experiments", "mine", experiment), ("benchmarks", benchmark["name"], benchmark)):
        (tmp_path / kind).mkdir()
        (tmp_path / kind / f"{name}.yaml").write_text(yaml.safe_dump(content))
    with pytest.raises(ConfigError, match=r"mini-wmdp.yaml:\d+: options.layout: was renamed to 'prompt_format'$"):
        load(tmp_path / "experiments" / "mine.yaml")


def test_a_specification_that_was_kept(tmp_path: Path) -> None:
    path = tmp_path / "spec.yaml"
    path.write_text("output: out\nstep: train\noptimizer_steps: 3\n")
    with pytest.raises(ConfigError) as error:
        specification(path)
    assert error.value.problems == [
        f"{path}:2: step: was renamed to 'program'",
        f"{path}:3: optimizer_steps: was renamed to 'steps'",
    ]
