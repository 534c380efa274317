"""Small evaluations and step logs, written to disk as the steps write them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.report import main
from pipeline.specs import ReportSpec

GOOD = {"forget_quality": 0.25, "model_utility": 0.5, "forget_probability": 0.125, "forget_truth_ratio": 0.75}


def dump(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


class Bench:
    """Collects models, writes their files under ``root`` and makes the report of them in ``root/report``."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.spec: dict[str, Any] = {
            "step": "report",
            "experiment": "trial",
            "benchmark": "mini",
            "split": "forget10",
            "model": "tiny",
            "entries": [],
            "config": {"learning_rate": 0.001},
            "output": str(root / "report"),
        }

    def add(
        self,
        method: str,
        *,
        kind: str = "unlearned",
        seed: int | None = None,
        flags: tuple[str, ...] = (),
        reasons: tuple[str, ...] = (),
        title: str | None = None,
        variant: str | None = None,
        steps: list[dict[str, Any]] | None = None,
        metrics: dict[str, float | None] | None = None,
        **values: float | None,
    ) -> None:
        parts = [method, variant, None if seed is None else f"seed-{seed}"]
        model = "-".join(part for part in parts if part)
        evaluation, run = self.root / "evaluation" / model, self.root / "runs" / model
        dump(
            evaluation / "evaluation.json",
            {
                "schema": 1,
                "model": model,
                "benchmark": "mini",
                "split": "forget10",
                "seed": seed,
                "metrics": {**GOOD, **values} if metrics is None else metrics,
                "settings": {},
                "provenance": {"examples_sha256": f"hash of {model}"},
            },
        )
        times = {"startup_seconds": 1.5, "work_seconds": 2.0, "write_seconds": 0.5}
        because = {"collapsed_because": list(reasons)}
        dump(evaluation / "summary.json", {**times, "flags": [f for f in flags if f == "collapsed"], **because})
        entry = {"model_id": model, "kind": kind, "title": title or method, "evaluation": str(evaluation)}
        if kind == "unlearned":
            dump(run / "summary.json", {**times, "flags": [f for f in flags if f != "collapsed"]})
            dump(run / "provenance.json", {"git_commit": "c0ffee", "host": "node-1", "seed": seed})
            rows = self.steps() if steps is None else steps
            (run / "steps.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
            entry |= {"method": method, "variant": variant, "seed": seed, "run": str(run)}
        self.spec["entries"].append(entry)

    @staticmethod
    def steps(count: int = 12, **fixed: float | None) -> list[dict[str, Any]]:
        keys = ("forget_loss", "retain_loss", "forget_grad_norm", "retain_grad_norm", "grad_cosine", "forget_alignment",
                "retain_alignment", "update_norm")  # fmt: skip
        rows = [{key: (i + 1) / (j + 2) for j, key in enumerate(keys)} for i in range(count)]
        return [{"step": i + 1, **row, "dual": None, **fixed} for i, row in enumerate(rows)]

    def read(self) -> ReportSpec:
        return ReportSpec.model_validate(self.spec)

    def write(self) -> Path:
        """Write the specification and the report; returns the report's folder."""
        path = self.root / "spec.yaml"
        path.write_text(yaml.safe_dump(self.spec))
        main([str(path)])
        return self.output

    @property
    def output(self) -> Path:
        return Path(self.spec["output"])


def start(root: Path) -> Bench:
    found = Bench(root)
    found.add("target", kind="target", forget_quality=1e-16, model_utility=0.9, forget_probability=0.99)
    found.add("retrain", kind="retrain", forget_quality=1.0, model_utility=0.85, forget_probability=0.2)
    return found


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    """Target and retrain are there; tests add unlearned models."""
    return start(tmp_path)


@pytest.fixture(scope="module")
def several(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    """A written report with a collapsed model, one of two seeds without gradients, and a p-value below the plot's."""
    found = start(tmp_path_factory.mktemp("several"))
    found.add("ga", flags=("collapsed",), reasons=("most retain questions are answered with no text",))
    for seed in (0, 1):
        found.add("npo", seed=seed, steps=found.steps(grad_cosine=None, forget_alignment=None, retain_alignment=None))
    found.add("blur-npo", title="BLUR-NPO", forget_quality=1e-200)
    found.spec["steps"] = {"prepare data": str(found.root / "evaluation" / "target")}
    found.write()
    return found
