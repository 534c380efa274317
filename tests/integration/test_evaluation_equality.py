"""Every metric of every benchmark family, also split, equals a plain transformers implementation within 1e-4."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.support import evaluation_cases as cases
from tests.support import plain
from tests.support.distributed import run_ranks

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]  # one fixture does all the work
NEAR_TIE = 2e-5  # of logits: which is the larger one is a matter of rounding
IMPLEMENTATIONS = {"tofu": plain.tofu, "muse": plain.muse, "tasks": plain.tasks, "choices": plain.tasks}


@pytest.fixture(scope="module")
def expected_in(
    tmp_path_factory: pytest.TempPathFactory, shared_data: Path
) -> tuple[Path, dict[Any, dict[str, float]]]:
    """The folder with everything that was evaluated; by case and model what the plain implementation makes of it."""
    folder = tmp_path_factory.mktemp("equality")
    cases.write_data(folder / "rows")
    cases.train(folder / "rows", folder / "models")
    stories = shared_data / "models" / "stories260K"
    checkpoints = {"mini": folder / "models" / "mini"}
    if stories.is_dir():
        checkpoints["stories260K"] = folder / "models" / "stories260K"
        checkpoints["stories260K"].symlink_to(stories)
        cases.perturb(stories, folder / "models" / "stories260K-retrain")
    expected: dict[Any, dict[str, float]] = {}
    for model, checkpoint in checkpoints.items():
        own, retrain = plain.Plain(checkpoint), plain.Plain(checkpoint.with_name(f"{model}-retrain"))
        cases.write_answers(folder / "rows", own, f"tasks-{model}")
        for case in cases.CASES[model]:
            implementation = IMPLEMENTATIONS[case]
            cases.prepare(folder, case, model, checkpoint)
            data, options, other = cases.data_of(folder, case, model), cases.OPTIONS[case], None
            if case == "tasks":
                data = _with_questions(folder, data)
            if case in cases.COMPARED:
                expected[case, f"{model}-retrain"], other = implementation(retrain, data, options)
            expected[case, model], _ = implementation(own, data, options, other)
        assert min(own.gap, retrain.gap) > NEAR_TIE, "a greedy choice is a matter of rounding: choose other rows"
    worlds = {1: ["TP1"], 2: ["DP2"], 4: ["TP2xPP2"]}
    for ranks, layouts in worlds.items():
        run_ranks(cases.at_layouts, ranks, folder, layouts, checkpoints, timeout=300)
    return folder, expected


def _with_questions(folder: Path, data: Path) -> Path:
    (data / "questions").symlink_to(folder / "rows" / "tasks" / "questions")
    return data


def found(folder: Path, layout: str, name: str) -> dict[str, float]:
    return json.loads((folder / layout / name / "evaluation.json").read_text())["metrics"]


@pytest.mark.parametrize(("model", "case"), [(model, case) for model, some in cases.CASES.items() for case in some])
def test_every_metric(expected_in: Any, model: str, case: str) -> None:
    folder, expected = expected_in
    if (case, model) not in expected:
        pytest.skip(f"{model} is absent")

    def leaks(name: str) -> dict[str, float]:
        """leak@k, which no other implementation draws alike: as on one rank."""
        return {key: value for key, value in found(folder, "TP1", name).items() if "_leak_at_" in key}

    for layout in cases.LAYOUTS:
        if case in cases.cases_at(layout, model):
            _equal(layout, found(folder, layout, f"{case}-{model}"), expected[case, model] | leaks(f"{case}-{model}"))
    if case in cases.COMPARED:
        name = f"{case}-{model}-retrain"
        _equal("retrain", found(folder, "TP1", name), expected[case, f"{model}-retrain"] | leaks(name))


def _equal(where: str, ours: dict[str, float], theirs: dict[str, float]) -> None:
    assert ours.keys() == theirs.keys(), where
    different = {
        key: (ours[key], value)
        for key, value in theirs.items()
        if ours[key] != pytest.approx(value, rel=1e-4, abs=1e-4)
    }
    assert not different, where


def test_the_rows_tell_metrics_apart(expected_in: Any) -> None:
    """An equality of zeros would say little: most metrics of the trained model are neither 0 nor 1."""
    _, expected = expected_in
    values = [value for (_, model), some in expected.items() if model == "mini" for value in some.values()]
    assert sum(value not in (0, 1) for value in values) > 0.6 * len(values)
