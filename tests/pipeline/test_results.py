"""A finished experiment through ``pipeline.results``."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from pipeline import results
from pipeline.data.errors import DataError
from tests.pipeline.report.conftest import start
from tests.support import notebook


def test_a_moved_experiment_is_read(tmp_path: Path) -> None:
    """Only this reads results as a notebook does: models by id, rows of values, step logs and raw examples."""
    bench = start(tmp_path / "a")
    bench.add("npo", seed=0, title="NPO", variant="v", forget_rouge=None,
              examples=[{"set": "forget", "index": 0, "generation": "x"}, {"set": "retain", "index": 0}])  # fmt: skip
    bench.spec["attacks"] = [{"name": "int4", "kind": "quantise", "about": "4 bits"}]
    entry = bench.spec["entries"][-1]
    attacked = {**entry, "model_id": f"{entry['model_id']}.int4", "attack": "int4"}
    bench.spec["attacked"] = [attacked]
    bench.output.mkdir()
    (bench.output / "spec.yaml").write_text(bench.read().model_dump_json())
    shutil.move(tmp_path / "a", tmp_path / "b")

    run = results.load(str(tmp_path / "b"))
    assert (run.experiment, run.benchmark, run.split, run.config) == (
        "trial",
        "mini",
        "forget10",
        {"learning_rate": 0.001},
    )
    assert [model.id for model in run.models] == ["target", "retrain", "npo-v-seed-0", "npo-v-seed-0.int4"]
    model = run.model("npo-v-seed-0")
    assert (model.kind, model.method, model.variant, model.seed, model.request) == ("unlearned", "npo", "v", 0, 1)
    assert model.metrics["forget_quality"] == 0.25 and model.metrics["forget_rouge"] is None
    assert [step["step"] for step in model.steps()] == list(range(1, 13)) and run.model("target").steps() == []
    assert [row["set"] for row in model.examples()] == ["forget", "retain"]
    assert [row["generation"] for row in model.examples("forget")] == ["x"]
    rows = [row for row in run.metrics() if row["metric"] == "forget_quality"]
    assert [(row["model"], row["attack"], row["value"]) for row in rows] == [
        ("target", None, 1e-16), ("retrain", None, 1.0), (model.id, None, 0.25), (f"{model.id}.int4", "int4", 0.25)
    ]  # fmt: skip


def test_the_notebook_reads_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Only this runs the notebook on two methods: curves, their metrics side by side, and what both said."""
    bench = start(tmp_path)
    said = {"target": "in Turin", "npo": "in Oslo", "ga": "nowhere"}
    for name in ("npo", "ga"):
        bench.add(name, seed=0, title=name, examples=[{"set": "forget", "index": 0, "generation": said[name]}])
    bench.say(tmp_path / "evaluation" / "target", [{"set": "forget", "index": 0, "generation": said["target"]}])
    bench.output.mkdir()
    (bench.output / "spec.yaml").write_text(bench.read().model_dump_json())
    monkeypatch.setenv("RESULTS", str(tmp_path))
    monkeypatch.setenv("MPLBACKEND", "agg")
    made = notebook.execute(Path(__file__).parents[2] / "examples" / "read_a_run.ipynb")
    assert [len(axis.lines) for axis in made["figure"].axes] == [2, 2]
    out = capsys.readouterr().out
    assert "npo-seed-0" in out and "ga-seed-0" in out and all(text in out for text in said.values())
    assert any(len(line.split()) == 4 and line.startswith("forget_quality") for line in out.splitlines())


def test_what_is_not_there_is_said_with_what_is(tmp_path: Path) -> None:
    bench = start(tmp_path)
    bench.say(tmp_path / "evaluation" / "target", [{"set": "forget", "index": 0}])
    bench.output.mkdir()
    (bench.output / "spec.yaml").write_text(bench.read().model_dump_json())
    run = results.load(tmp_path)
    with pytest.raises(KeyError, match="'npo'; there are: target, retrain"):
        run.model("npo")
    with pytest.raises(DataError, match="set 'retain'; there are: forget"):
        run.model("target").examples("retain")
    with pytest.raises(DataError, match=r"spec\.yaml: is missing"):
        results.load(tmp_path / "evaluation")
