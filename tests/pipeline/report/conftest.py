"""Small evaluations and step logs, written to disk as the steps write them."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.data.cache import sha256
from pipeline.report.__main__ import main
from pipeline.specs import ReportSpec

HOSTILE = "</p><script>x()</script><img src=x onerror=x()>"
TIMES = {"startup_seconds": 1.5, "work_seconds": 2.0, "write_seconds": 0.5}
GOOD = {"forget_quality": 0.25, "model_utility": 0.5, "forget_probability": 0.125, "forget_truth_ratio": 0.75}


def dump(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


class Bench:
    """Collects models, writes their files under ``root`` and makes the report of them in ``root/report``."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.spec: dict[str, Any] = {
            "program": "report",
            "options": {"family": "tofu"},
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
        trajectory: list[dict[str, Any]] | None = None,
        selected: int | None = None,
        metrics: dict[str, float | None] | None = None,
        examples: Sequence[dict[str, Any]] | None = None,
        **values: float | None,
    ) -> None:
        parts = [method, variant, None if seed is None else f"seed-{seed}"]
        model = "-".join(part for part in parts if part)
        entry: dict[str, Any] = {"model_id": model, "kind": kind, "title": title or method, "seed": seed}
        entry["evaluation"] = str(self.root / "evaluation" / model)
        if kind == "unlearned":
            entry |= {"method": method, "variant": variant, "run": str(self.root / "runs" / model)}
        else:
            del entry["seed"]
        self.evaluated(entry, {**GOOD, **values} if metrics is None else metrics, flags, reasons, examples)
        if kind == "unlearned":
            self.unlearned(entry, flags, steps, trajectory, selected)
        self.spec["entries"].append(entry)

    def evaluated(
        self,
        entry: dict[str, Any],
        metrics: dict[str, float | None],
        flags: tuple[str, ...] = (),
        reasons: tuple[str, ...] = (),
        examples: Sequence[dict[str, Any]] | None = None,
    ) -> None:
        """Write the evaluation that an entry names."""
        evaluation = Path(entry["evaluation"])
        dump(
            evaluation / "evaluation.json",
            {
                "schema": 2,
                "model": entry["model_id"],
                "benchmark": "mini",
                "split": "forget10",
                "seed": entry.get("seed"),
                "metrics": metrics,
                "settings": {
                    "options": {"family": "tofu"},
                    "decoding": "greedy",
                    "precision": "fp32",
                    "examples": {},
                    "data_sha256": {},
                },
                "provenance": {
                    "checkpoint": "checkpoint",
                    "data": "data",
                    "retain_evaluation": None,
                    "examples_sha256": f"hash of {entry['model_id']}",
                },
            },
        )
        if examples is not None:
            self.say(evaluation, examples)
        collapsed = {"flags": [f for f in flags if f == "collapsed"], "collapsed_because": list(reasons)}
        dump(evaluation / "summary.json", {**TIMES, **collapsed})

    def unlearned(
        self,
        entry: dict[str, Any],
        flags: tuple[str, ...] = (),
        steps: list[dict[str, Any]] | None = None,
        trajectory: list[dict[str, Any]] | None = None,
        selected: int | None = None,
    ) -> None:
        """Write the run that an entry names."""
        run = Path(entry["run"])
        chosen = {"select": "best-on-validation", "selected_step": selected}
        if selected is None:
            chosen = {"select": "last", "selected_step": 12}
        dump(run / "summary.json", {**TIMES, "flags": [f for f in flags if f != "collapsed"], **chosen})
        dump(run / "provenance.json", {"git_commit": "c0ffee", "host": "node-1", "seed": entry["seed"]})
        rows = self.steps() if steps is None else steps
        for name, log in {"steps": rows, "trajectory": trajectory or []}.items():
            (run / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in log))

    @staticmethod
    def say(evaluation: Path, examples: Sequence[dict[str, Any]]) -> None:
        """Write the examples of an evaluation that is there."""
        (evaluation / "examples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in examples))
        record = json.loads((evaluation / "evaluation.json").read_text())
        record["provenance"]["examples_sha256"] = sha256(evaluation / "examples.jsonl")
        dump(evaluation / "evaluation.json", record)

    @staticmethod
    def steps(count: int = 12, **fixed: Any) -> list[dict[str, Any]]:
        keys = ("forget_loss", "retain_loss", "forget_grad_norm", "retain_grad_norm", "grad_cosine", "forget_alignment",
                "retain_alignment", "update_norm")  # fmt: skip
        rows = [{key: (i + 1) / (j + 2) for j, key in enumerate(keys)} for i in range(count)]
        absent = dict.fromkeys(("dual", "rule_state", "retain_nll", "note"))
        return [{"step": i + 1, **row, **absent, **fixed} for i, row in enumerate(rows)]

    @staticmethod
    def trajectory(height: float = 1.0, steps: Sequence[int] = (0, 4, 8, 12)) -> list[dict[str, Any]]:
        """Scores that rise to ``height`` at the third point, and fall."""
        keys = ("forget_probability", "retain_probability", "retain_greedy_match", "score")
        values = ((0.9, 0.8, 0.9, 0.2), (0.5, 0.8, 0.6, 0.6), (0.2, 0.7, 0.7, 1.0), (0.1, 0.3, 0.5, 0.5))
        rows = [dict(zip(keys, row, strict=True)) for row in values]
        return [{"step": n, **row, "score": row["score"] * height} for n, row in zip(steps, rows, strict=True)]

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
def no_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """For tests of tables: drawing takes most of a report's time."""
    for module in ("curves", "requests", "trade_offs"):
        monkeypatch.setattr(f"pipeline.report.{module}.draw", lambda *_: [])


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    """Target and retrain are there; tests add unlearned models."""
    return start(tmp_path)


def row(name: str, index: int, said: str | None, answer: str = "Ada lives in Turin.") -> dict[str, Any]:
    return {"set": name, "index": index, "question": "Where does Ada live?", "answer": answer, "generation": said}


@pytest.fixture
def said(bench: Bench) -> Bench:
    """Three rows to forget, of which an unlearned model leaks the last, and one to keep that it has lost."""
    known = [row("forget", i, "In Turin.") for i in range(3)] + [row("retain", 0, "In Turin.")]
    heard = ["In Rome.", HOSTILE, "In Turin."]
    made = [row("forget", i, text) for i, text in enumerate(heard)] + [row("retain", 0, "")]
    for name in ("target", "retrain"):
        bench.say(bench.root / "evaluation" / name, known)
    bench.add("npo", seed=0, title="<b>NPO</b>", examples=made)
    bench.spec["examples"] = 10
    return bench


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


CROWD = {
    "ga": "GA",
    "graddiff": "GradDiff",
    "graddiff-kl": "GradDiff (KL)",
    "npo": "NPO",
    "npo-muse": "NPO (MUSE's logits)",
    "simnpo": "SimNPO",
    "idk-dpo": "IdkDPO",
    "ngdiff": "NGDiff",
    "ngdiff-auto": "NGDiff, automatic rate",
    "rmu": "RMU",
    "undial": "UNDIAL",
    "wga": "WGA",
    "satimp": "SatImp",
    "ce-u": "CE-U",
    "task-vector": "Task vector",
    "blur-npo": "BLUR-NPO",
    "blur-simnpo": "BLUR-SimNPO",
    "blur-rmu": "BLUR-RMU",
    "pdu": "PDU",
    "pdu-epoch": "PDU, dual per epoch",
    "ofmu": "OFMU",
    "blur-ga": "BLUR-GA",
}


def curve(place: int, seed: int, count: int = 60) -> list[dict[str, Any]]:
    """A step log with losses of the size that real ones have, different for each method and seed."""
    draw = random.Random(100 * place + seed)
    speed, scale = 1 + place % 5, 1.6 ** (place % 9 - 3)
    rows = Bench.steps(count, grad_cosine=None, forget_alignment=None, retain_alignment=None)
    dual = 0.5
    for i, row in enumerate(rows):
        x = speed * (i + 1) / count
        noise = draw.gauss(1, 0.06)
        row |= {"forget_loss": scale * math.exp(-x) * noise, "retain_loss": (0.1 + 0.02 * place * x) * noise}
        row |= dict.fromkeys(("forget_grad_norm", "retain_grad_norm", "update_norm"))
        if (i + 1) % 10 == 0:
            row["retain_nll"] = row["retain_loss"] * 1.1
        if "pdu" in list(CROWD)[place]:
            dual = max(0.0, dual + row["retain_loss"] - 0.25)
            row |= {"dual": dual, "rule_state": {"dual": dual, "epsilon": 0.25}}
        if "ofmu" in list(CROWD)[place]:
            row["rule_state"] = {"penalty": 0.1 * 1.05**i, "phase": float(i % 4)}
    return rows


def crowd(root: Path, methods: Sequence[str] = tuple(CROWD)) -> Bench:
    """A written report with these methods, two seeds each, some of them flagged or with notes in their step logs."""
    found = start(root)
    for place, (method, title) in enumerate(CROWD.items()):
        if method not in methods:
            continue
        for seed in (0, 1):
            draw = random.Random(1000 + 2 * place + seed)
            steps, flags, because = curve(place, seed), (), ()
            if method == "ga":
                flags, because = ("collapsed",), ("most retain questions are answered with no text",)
                for i in (9, 19, 29):
                    steps[i]["note"] = (
                        f"collapsed: retained text costs {8 + i / 10:.3g} nats a token, a uniform guess 7.62"
                    )
            if method == "task-vector" and seed:
                flags = ("unchanged", "overlap")
            if method == "blur-simnpo":
                steps[40 + seed]["note"] = "the forget gradient is zero: stepping along the retain gradient"
            utility = 0.0 if method == "ga" else min(0.85, 0.45 + 0.02 * place + draw.gauss(0, 0.02))
            found.add(
                method,
                title=title,
                seed=seed,
                flags=flags,
                reasons=because,
                steps=steps,
                forget_quality=10 ** -min(20.0, abs(draw.gauss(0, 1) * (20 - place))),
                model_utility=utility,
                forget_probability=abs(draw.gauss(0.01 * place, 0.02)),
                forget_truth_ratio=0.4 + 0.02 * place + draw.gauss(0, 0.01),
                forget_rouge=0.5 + draw.gauss(0, 0.05),
                retain_probability=utility,
                retain_rouge=min(1.0, utility + 0.1),
            )
    found.spec["steps"] = {"prepare data": str(root / "evaluation" / "target")}
    found.write()
    return found


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    """Enough methods to be compared in three parts."""
    return crowd(tmp_path_factory.mktemp("many"), [*list(CROWD)[:9], *list(CROWD)[-5:]])
