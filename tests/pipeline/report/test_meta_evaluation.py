"""How well metrics tell models that knew from models that never did: areas by hand, and the report's table."""

from __future__ import annotations

import json

import pytest

from pipeline.report import meta_evaluation
from tests.pipeline.report.conftest import Bench, dump


@pytest.mark.parametrize(
    ("first", "second", "area"),
    [([3, 2], [1, 0], 1), ([0], [1, 2], 0), ([2, 1], [1, 0], 0.875), ([1], [1], 0.5), ([], [1], None)],
)
def test_the_area_is_the_share_of_pairs_with_ties_counted_half(first, second, area) -> None:
    assert meta_evaluation.auc(first, second) == area


def repeat(bench: Bench, kind: str, seed: int, attack: str | None, **values: float) -> None:
    """Another model of a kind, or what became of one by an attack."""
    model = f"{kind}-seed-{seed}" + (f".{attack}" if attack else "") if seed else f"{kind}.{attack}"
    evaluation = bench.root / "evaluation" / model
    record = json.loads((bench.root / "evaluation" / kind / "evaluation.json").read_text())
    dump(evaluation / "evaluation.json", {**record, "model": model, "metrics": {**record["metrics"], **values}})
    text = (bench.root / "evaluation" / kind / "summary.json").read_text()
    (evaluation / "summary.json").write_text(text)
    entry = {"model_id": model, "kind": kind, "title": kind, "attack": attack, "evaluation": str(evaluation)}
    bench.spec.setdefault("repeats" if seed else "attacked", []).append({**entry, "seed": seed or None})


@pytest.mark.slow
@pytest.mark.usefixtures("no_figures")
def test_the_table_compares_all_models_of_a_kind_before_and_after_each_attack(bench: Bench) -> None:
    """The first ones are rows of the report, also attacked; target's own row has none of the others."""
    bench.add("npo", title="NPO", model_utility=0.6)
    bench.spec["attacks"] = [{"name": "int4", "kind": "quantise", "about": "Rounded"}]
    repeat(bench, "target", 1, None, forget_probability=0.1)
    repeat(bench, "retrain", 1, None, forget_probability=0.3)
    for seed in (0, 1):
        repeat(bench, "target", seed, "int4", forget_probability=0.1)
        repeat(bench, "retrain", seed, "int4", forget_probability=0.1 + 0.1 * seed)
    folder = bench.write()
    text = (folder / "table.md").read_text()
    part = text.split("## What the metrics tell apart")[1]
    # 0.99 and 0.1 against 0.2 and 0.3; then 0.1 twice against 0.1 and 0.2.
    assert "| Forget probability | 0.500 | 0.250 |" in part, part
    assert "over 2 models" in part and "Model utility" not in part
    target = next(line for line in text.splitlines() if line.startswith("| target"))
    assert target.startswith("| target | 1 |") and "0.990" in target
    page = (folder / "index.html").read_text()
    assert "What the metrics tell apart" in page and "0.250" in page
