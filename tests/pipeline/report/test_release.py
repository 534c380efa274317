"""Which checkpoints are removed, and when: never what may still be chosen, or is still needed."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import yaml

from pipeline.report import release
from tests.pipeline.report.conftest import Bench, start


class World:
    """Three points of a sweep with two seeds, the second of them the best on validation."""

    def __init__(self, root: Path, choice: bool = True) -> None:
        self.root, bench = root, start(root)
        for gamma, height in ((1, 0.8), (2, 1.0), (3, 0.9)):
            for seed in (0, 1):
                bench.add("blur", variant=f"gamma-{gamma}", seed=seed, trajectory=Bench.trajectory(height), selected=8)
                bench.spec["entries"][-1] |= {"swept": "blur", "point": {"rule.gamma": gamma}}
        bench.spec["entries"] = bench.spec["entries"][2:]
        bench.spec["chosen_by"] = "best-on-validation"
        self.choice: dict[str, Any] | None = bench.read().model_dump(mode="json") if choice else None
        self.models = [entry["model_id"] for entry in bench.spec["entries"]]
        for model in self.models:
            self.checkpoint(model).mkdir()
            (self.checkpoint(model) / "model.safetensors").write_text("weights")

    def checkpoint(self, model: str) -> Path:
        return self.root / "runs" / model / "checkpoint"

    def release(self, model: str) -> list[str]:
        """Begin the model's release; returns the models whose checkpoints it removed."""
        spec = {
            "program": "release",
            "model_id": model,
            "checkpoints": {name: [str(self.checkpoint(name))] for name in self.models},
            "readers": {name: [str(self.root / "evaluation" / name / "summary.json")] for name in self.models},
            "choice": self.choice,
            "output": str(self.root / "kept" / model),
        }
        (self.root / "kept" / model).mkdir(parents=True, exist_ok=True)
        path = self.root / "kept" / model / "spec.yaml"
        path.write_text(yaml.safe_dump(spec))
        release.main([str(path)])
        removed = json.loads((self.root / "kept" / model / "summary.json").read_text())["removed"]
        return [Path(folder).parent.name for folder in removed]

    @property
    def left(self) -> list[str]:
        return [model for model in self.models if self.checkpoint(model).is_dir()]


def test_the_best_of_those_that_are_done_stays_whatever_the_order(tmp_path: Path) -> None:
    """A point with a seed that is not done may still be the best, and what is there of it stays."""
    world = World(tmp_path)
    first, second, third = ([f"blur-gamma-{i}-seed-{seed}" for seed in (0, 1)] for i in (1, 2, 3))
    assert world.release(first[0]) == [] and world.release(third[0]) == [] and world.release(third[1]) == []
    assert world.left == world.models
    assert world.release(first[1]) == first
    assert world.release(second[0]) == []
    assert world.release(second[1]) == third
    assert world.left == second
    assert world.release(second[1]) == [], "a second time there is nothing to remove"
    assert world.left == second and not list(tmp_path.glob("**/*.removed"))


def test_what_runs_again_is_not_taken_for_done(tmp_path: Path) -> None:
    """Neither one that has been read since its release began, nor one whose reader is not there."""
    world = World(tmp_path)
    for model in world.models[:3]:
        world.release(model)
    world.checkpoint(world.models[0]).mkdir(exist_ok=True)
    marker = tmp_path / "kept" / world.models[0] / "ready.json"
    later = tmp_path / "evaluation" / world.models[0] / "summary.json"
    os.utime(later, ns=(marker.stat().st_mtime_ns + 10**9,) * 2)
    assert world.release(world.models[3]) == []
    later.rename(later.with_name("elsewhere.json"))
    assert world.release(world.models[3]) == []
    later.with_name("elsewhere.json").rename(later)
    os.utime(later, ns=(marker.stat().st_mtime_ns,) * 2)
    assert world.release(world.models[3]) == world.models[:2]


def test_where_none_is_kept_only_its_own_goes(tmp_path: Path) -> None:
    """Also what an attempt that was killed has left."""
    world = World(tmp_path, choice=False)
    left = world.checkpoint(world.models[1]).with_name("checkpoint.removed")
    left.mkdir()
    assert world.release(world.models[1]) == [world.models[1]]
    assert world.left == [model for model in world.models if model != world.models[1]] and not left.exists()
