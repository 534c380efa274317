"""What a report has of sweeps and of costs: heat maps, the Pareto front, the radar chart, LaTeX, and commands."""

from __future__ import annotations

import dataclasses
import shlex
from pathlib import Path

import pytest

from pipeline.benchmarks import family
from pipeline.benchmarks.base import Metric
from pipeline.report import costs, curves, latex, radar, read, selection, sweeps, trade_offs
from pipeline.report.logs import StepTiming
from pipeline.report.read import Group
from pipeline.specs import ReportSpec
from tests.pipeline.report.conftest import Bench, start

POINTS = {(0.5, 0.1): (0.7, 0.30), (0.5, 0.2): (0.6, 0.35), (1, 0.1): (0.5, 0.10), (1, 0.2): (0.8, 0.50)}


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> tuple[ReportSpec, list[Group], tuple[Metric, ...]]:
    """A grid of two keys, of which utility chooses a point, beside a method that was not swept."""
    bench = start(tmp_path_factory.mktemp("swept"))
    bench.add("npo_x", seed=0, model_utility=0.4, forget_probability=0.4, forget_truth_ratio=0.7)
    for (gamma, beta), (utility, probability) in POINTS.items():
        values = {"model_utility": utility, "forget_probability": probability, "forget_truth_ratio": beta}
        variant = f"gamma-{gamma:g}-beta-{beta:g}"
        steps = [{**row, "tokens": 800, "seconds": gamma, "peak_memory_bytes": 2**30} for row in Bench.steps()]
        bench.add("blur", variant=variant, seed=0, steps=steps, **values)
        bench.spec["entries"][-1] |= {"swept": "blur", "point": {"rule.gamma": gamma, "forget.beta": beta}}
    bench.spec |= {"chosen_by": "test_metric", "test_metric": "model_utility"}
    bench.spec["config"] = {"set": ["seeds=[0]"], "layout": {"tensor": 2, "pipeline": 3, "data": 1}}
    checkpoint = bench.root / "runs" / "npo_x-seed-0" / "checkpoint"
    checkpoint.mkdir()
    (checkpoint / "model.safetensors").write_bytes(bytes(3 * 2**20))
    (checkpoint / "README.md").write_bytes(bytes(2**22))
    spec = bench.read()
    metrics = tuple(family("tofu").metrics(spec.options))
    groups = read.load(spec)
    return spec, selection.marked(groups, selection.choices(spec, groups, metrics)), metrics


Swept = tuple[ReportSpec, list[Group], tuple[Metric, ...]]


def test_a_map_has_every_point_and_frames_the_chosen_one(swept: Swept) -> None:
    spec, groups, metrics = swept
    utility = [metric for metric in metrics if metric.key == "model_utility"]
    (figure,) = sweeps.draw(spec, groups, utility)
    assert figure.name == "sweep-blur-model-utility" and "on the test metric model_utility" in figure.caption
    for text in ("0.700", "0.600", "0.500", "0.800", "rule.gamma", "forget.beta"):
        assert f">{text}<" in figure.svg
    assert sweeps.too_many(groups) == []


def test_no_map_of_three_keys(tmp_path: Path) -> None:
    """Which the page says, by the sweep's name."""
    bench = start(tmp_path)
    for i in range(2):
        bench.add("blur", variant=str(i), seed=0)
        bench.spec["entries"][-1] |= {"swept": "blur", "point": {"a": i, "b": i, "c": i}}
    spec = bench.read()
    groups = read.load(spec)
    assert sweeps.too_many(groups) == ["blur"]
    assert sweeps.draw(spec, groups, tuple(family("tofu").metrics(spec.options))) == []


def test_the_front_is_of_what_no_other_model_beats(swept: Swept) -> None:
    """Higher utility and lower probability; references are not on it."""
    _, groups, metrics = swept
    titled = {metric.key: metric for metric in metrics}
    front = trade_offs.front(groups, titled["model_utility"], titled["forget_probability"])
    assert sorted(front) == [(0.5, 0.1), (0.7, 0.3), (0.8, 0.5)]


def test_the_radar_has_the_chosen_point_of_a_sweep_alone(swept: Swept) -> None:
    _, groups, metrics = swept
    (figure,) = radar.draw(groups, metrics)
    assert ">blur (gamma-1-beta-0.2)<" in figure.svg and "gamma-0.5" not in figure.svg
    assert "Not drawn: 3 rows" in figure.caption
    assert radar.draw([group for group in groups if group.kind != "unlearned"], metrics) == []


def test_what_each_model_cost(swept: Swept) -> None:
    """Rank hours are of 6 ranks; the model card, which the report writes, is none of the checkpoint's bytes."""
    spec, groups, _ = swept
    found = {cost.model: cost for cost in costs.of(spec, groups)}
    plain, point = found["npo_x-seed-0"], found["blur-gamma-0.5-beta-0.1-seed-0"]
    assert (plain.disk, plain.rate, plain.memory) == ("3 MiB", "–", "–")
    assert (point.disk, point.rate, point.memory, point.steps) == ("removed", "1,600", "1 GiB", "12")
    assert float(point.hours) == pytest.approx(6 * 8 / 3600, rel=0.01)
    words = shlex.split(point.command)
    assert words[3] == str(groups[3].results[0].entry.evaluation / "evaluation.json")
    assert f"experiment={spec.experiment}" in words and 'set=["seeds=[0]"]' in words


def test_latex_has_no_text_that_latex_reads(swept: Swept) -> None:
    spec, groups, metrics = swept
    text = latex.render(spec, groups, metrics)
    lines = [line for line in text.splitlines() if line.endswith("\\\\")]
    assert len(lines) == 1 + len(groups) and len({line.count(" & ") for line in lines}) == 1
    assert "npo\\_x & 1" in text and "\\textbf{0.800}" in text
    assert latex.escape("a_b\\50%~") == r"a\_b\textbackslash{}50\%\textasciitilde{}"


def test_losses_of_attacks_that_train_are_drawn(swept: Swept) -> None:
    """A line a model, in one figure an attack."""
    _, groups, _ = swept
    result = groups[2].results[0]
    entry = result.entry.model_copy(update={"attack": "relearn"})
    losses = {"step": [0.0, 1.0], "loss": [2.0, 1.0]}
    attacked = Group((read.Result(**{**vars(result), "entry": entry, "losses": losses}),))
    found = [figure for figure in curves.draw([groups[2]], [attacked]) if figure.section == "robustness"]
    assert [(figure.name, figure.title) for figure in found] == [("relearn-relearn", "Loss during relearn")]


def test_points_are_told_apart_by_all_their_digits(tmp_path: Path) -> None:
    """Two values that differ in the seventh digit have a cell each, and null is called as in names."""
    bench = start(tmp_path)
    for value in (1234567, 1234568, None):
        bench.add("blur", variant=str(value), seed=0, model_utility=0.5)
        bench.spec["entries"][-1] |= {"swept": "blur", "point": {"a": value}}
    spec = bench.read()
    utility = [metric for metric in family("tofu").metrics(spec.options) if metric.key == "model_utility"]
    (figure,) = sweeps.draw(spec, read.load(spec), utility)
    assert all(f">{text}<" in figure.svg for text in ("1234567", "1234568", "null"))


def test_a_variant_is_named_where_the_title_only_holds_its_letters(tmp_path: Path) -> None:
    bench = start(tmp_path)
    for variant in ("a", "d", "slow"):
        bench.add("graddiff", title="GradDiff, slow", variant=variant, seed=0)
    titles = [group.title for group in read.load(bench.read())[2:]]
    assert titles == ["GradDiff, slow (a)", "GradDiff, slow (d)", "GradDiff, slow"]


def test_figures_of_one_metric_against_several_have_names_of_their_own(swept: Swept) -> None:
    _, groups, metrics = swept
    pairs = [("model_utility", "forget_probability"), ("forget_truth_ratio", "forget_probability")]
    names = [figure.name for figure in trade_offs.draw(groups, metrics, pairs)]
    assert names == [f"trade-off-forget-probability-{x}" for x in ("model-utility", "forget-truth-ratio")]
    assert [figure.name for figure in trade_offs.draw(groups, metrics, pairs[:1])] == ["trade-off-forget-probability"]


def test_a_model_of_which_a_seed_has_no_value_is_not_on_the_front(tmp_path: Path) -> None:
    """Its mean over the others is no mean of the model; the caption names it."""
    bench = start(tmp_path)
    bench.add("npo", seed=0, model_utility=0.9, forget_probability=0.1)
    bench.add("npo", seed=1, model_utility=None, forget_probability=0.9)
    bench.add("blur", seed=0, model_utility=0.5, forget_probability=0.2)
    spec = bench.read()
    groups, titled = read.load(spec), {metric.key: metric for metric in family("tofu").metrics(spec.options)}
    assert trade_offs.front(groups, titled["model_utility"], titled["forget_probability"]) == [(0.5, 0.2)]
    (figure,) = trade_offs.draw(groups, list(titled.values()), [("model_utility", "forget_probability")])
    assert "no value, which keeps a model out of any front: npo." in figure.caption


def test_a_judge_is_one_process_whatever_the_layout(swept: Swept) -> None:
    spec, groups, _ = swept
    result = groups[2].results[0]
    hour = StepTiming("a judge", "judge", 0.0, 3600.0, 0.0, ())
    judged = Group((dataclasses.replace(result, timings=(*result.timings, hour)),))
    before, after = (float(costs.of(spec, [each])[0].hours) for each in (groups[2], judged))
    assert after - before == pytest.approx(1, rel=0.01), "6 ranks have not judged"
