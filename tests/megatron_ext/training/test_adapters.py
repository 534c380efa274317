"""Runs that train adapters: what a state holds, going on from it, and the model before unlearning without a copy."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open

from megatron_ext.checkpoint import reading, writing
from megatron_ext.model import adapters
from megatron_ext.specs import UnlearnSpec, read
from megatron_ext.steps import unlearn
from megatron_ext.summary import Clock
from megatron_ext.training import loop
from megatron_ext.training.unlearning import UnlearningRun
from tests.support import worlds

STATE = 6  # steps after which the state is written from which the run goes on


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, alone: Any) -> Path:
    folder = tmp_path_factory.mktemp("world")
    worlds.write_data(folder)
    writing.save(reading.initialise(worlds.CONFIG, alone, seed=4), alone, folder / "target" / "checkpoint")
    return folder


def spec(world: Path, name: str, **changes: Any) -> UnlearnSpec:
    topics = [{key: str(world / f"{key.removesuffix('_data')}.npz") for key in ("forget_data", "retain_data")}]
    method = {"forget_loss": {"name": "undial", "beta": 3.0}, "retain_loss": {"name": "kl"}, "rule": {"name": "gru"}}
    settings = {"lora": {"rank": 2, "alpha": 4.0}, "epochs": 3.0, "optimizer": {"learning_rate": 0.01}}
    return read(worlds.unlearn_spec(world, name, topics=topics, **method, **settings, **changes), UnlearnSpec)


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*.safetensors")}


def test_a_run_goes_on_from_a_state_of_adapters_to_the_same_bits(
    world: Path, alone: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    validation = {"every_steps": 2, "select": "best-on-validation"}
    changes = {"checkpoint_every": STATE, "validation": validation, "saved_epochs": [1]}
    whole, cut = (spec(world, name, **changes) for name in ("whole", "cut"))
    unlearn.unlearn(whole, alone, Clock())
    loaded: list[Path] = []
    load = reading.load

    def counting(folder: Path, *rest: Any, **named: Any) -> Any:
        loaded.append(folder)
        return load(folder, *rest, **named)

    monkeypatch.setattr(reading, "load", counting)
    run = UnlearningRun(cut, alone)
    assert loaded == [cut.checkpoint], "KL and UNDIAL need the model before unlearning, which is there already"

    def step(i: int) -> loop.StepOutcome:
        if i == STATE + 2:
            raise KeyboardInterrupt
        return run.step(i)

    def measure(steps: int) -> None:
        run.validate(steps)
        run.save_epoch(steps)

    with pytest.raises(KeyboardInterrupt):
        loop.run(run.trainer, run.resume, run.steps, STATE, step, "cut", measure)
    (state,) = (cut.output / "resume").glob("step-*/*.safetensors")
    (best, *_) = (cut.output / "resume").glob("best-*")
    assert sorted(file.name for file in best.iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]
    trained = sum(adapter.A.numel() + adapter.B.numel() for adapter in adapters.of(run.trainer.model))
    with safe_open(state, framework="pt") as held:
        shapes = [held.get_slice(name).get_shape() for name in held.keys()]  # noqa: SIM118
    assert sum(math.prod(shape) for shape in shapes if shape) == 4 * trained, "weights, GRU's mean and two moments"

    unlearn.unlearn(cut, alone, Clock())

    written = {"checkpoint/model.safetensors", "adapter/adapter_model.safetensors", "epochs/epoch-1/model.safetensors"}
    assert set(files(whole.output)) == written
    assert files(cut.output) == files(whole.output)
    assert files(cut.output / "checkpoint") != files(cut.checkpoint)
