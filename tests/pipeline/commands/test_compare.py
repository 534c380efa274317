"""``unlearn compare``: what differs between two results, and no more."""

from __future__ import annotations

import math
import shutil
from pathlib import Path

import pytest

from pipeline.__main__ import main
from pipeline.report.comparison import _welch, holm, load, metrics
from tests.pipeline.report.conftest import Bench, dump, start


def results(root: Path, rate: float, values: tuple[float, ...], commit: str) -> Bench:
    found = start(root)
    for seed, value in enumerate(values):
        found.add("npo", seed=seed, forget_probability=value)
    found.spec["config"] = {"methods": {"npo": {"learning_rate": rate}}, "split": "forget10"}
    for entry in found.spec["entries"]:
        dump(Path(entry["evaluation"]) / "provenance.json", {"git": {"commit": commit}, "python": "3.11.2"})
    found.write()
    shutil.copy(root / "spec.yaml", root / "report" / "spec.yaml")  # where the launcher leaves it
    return found


@pytest.mark.slow
def test_what_differs_is_said_with_its_significance(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Only this compares: three seeds that differ clearly, a setting, a commit; nothing that is the same is named."""
    first = results(tmp_path / "a", 0.001, (0.10, 0.11, 0.12), "c0ffee").root
    results(tmp_path / "b", 0.002, (0.50, 0.52, 0.51), "decaf")
    row = tmp_path / "b" / "evaluation" / "npo-seed-2" / "provenance.json"
    dump(row, {"git": {"commit": "decaf"}, "python": "3.12.1"})  # one row of several was made with another version
    second = (tmp_path / "b").rename(tmp_path / "moved")  # results are read where they are now
    assert main(["compare", str(first), str(second)]) == 0
    printed = capsys.readouterr().out
    assert "methods.npo.learning_rate: 0.001 | 0.002" in printed and "git.commit: c0ffee | decaf" in printed
    assert "python: 3.11.2 | 3.11.2, 3.12.1" in printed
    assert "data: the same" in printed and "forget10" not in printed and "model_utility" not in printed
    (found,) = metrics(load(first), load(second))
    assert (found.model, found.metric, found.first) == ("npo", "forget_probability", (0.10, 0.11, 0.12))
    x = math.sqrt(2400 / 2404)  # t² = 2400 at 4 degrees of freedom, for which Student's distribution has this form
    assert found.p == pytest.approx(1 - x * (3 - x * x) / 2, rel=1e-4)
    assert main(["compare", str(first), str(first)]) == 0
    assert "metrics: the same" in capsys.readouterr().out
    assert main(["compare", str(first), str(tmp_path)]) == 2
    assert "spec.yaml: is missing" in capsys.readouterr().err


def test_holms_method() -> None:
    """Only this holds the correction for several tests, by the example 0.01, 0.04, 0.03."""
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([]) == []


def test_numbers_near_the_largest_have_no_significance_and_no_crash() -> None:
    """Only this compares perplexities of collapsed models, whose variance no float holds; and seeds that are alike."""
    assert _welch([math.exp(400), 2.0], [3.0, 2.0]) is None
    assert _welch([1.0, 1.0], [2.0, 2.0]) is None
    assert _welch([1.0, 1.0], [2.0, 2.1]) is not None


def test_a_value_that_moved_to_another_seed_is_a_difference(tmp_path: Path) -> None:
    """Also where a seed has none; and seeds that are alike but for rounding have no significance."""
    first, second = (
        results(tmp_path / name, 0.1, values, "c") for name, values in (("a", (1.0, 2.0)), ("b", (2.0, 1.0)))
    )
    assert [found.first for found in metrics(load(first.root), load(second.root))] == [(1.0, 2.0)]
    assert _welch([None, 0.5, 0.6], [0.5, None, 0.6]) == pytest.approx(1.0)
    assert _welch([0.1 + 0.2, 0.3], [0.3, 0.1 + 0.2]) is None


def test_models_of_further_seeds_and_of_epochs_are_compared(tmp_path: Path) -> None:
    pair = []
    for name, value in (("a", 0.1), ("b", 0.9)):
        bench = start(tmp_path / name)
        bench.add("npo", seed=0)
        for model, changed in (("retrain-seed-1", {"seed": 1}), ("npo-seed-0.epoch-1", {"epoch": 1})):
            kind = "retrain" if model.startswith("retrain") else "unlearned"
            of = bench.spec["entries"][1 if kind == "retrain" else 2]
            entry = {**of, "model_id": model, "evaluation": str(bench.root / "evaluation" / model), **changed}
            bench.evaluated(entry, {"model_utility": value})
            entry.pop("run", None)
            bench.spec["repeats" if kind == "retrain" else "by_epoch"] = [entry]
        bench.write()
        shutil.copy(bench.root / "spec.yaml", bench.root / "report" / "spec.yaml")
        pair.append(load(bench.root))
    assert [found.model for found in metrics(*pair)] == ["npo, epoch 1", "retrain, further seeds"]
    rows = (tmp_path / "a" / "report" / "table.csv").read_text().splitlines()
    assert any(",retrain,,1," in row for row in rows), "the long table has every evaluation"
