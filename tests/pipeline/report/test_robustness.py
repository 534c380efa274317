"""Attacked models in a report: before and after, ratios by hand, and nothing of them where models are compared."""

from __future__ import annotations

import csv
import json
import re
import statistics

import pytest
import yaml
from pydantic import ValidationError

from pipeline.report.__main__ import main
from pipeline.specs import ReportSpec
from tests.pipeline.report.conftest import GOOD, Bench, dump

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("no_figures")]

ATTACKS = {"relearn": "relearn", "int4": "quantise"}


def attack(bench: Bench, model: str, name: str, flags: tuple[str, ...] = (), **values: float | None) -> None:
    """What became of an entry's model, with these metrics."""
    if name not in [found["name"] for found in bench.spec.setdefault("attacks", [])]:
        bench.spec["attacks"].append({"name": name, "kind": ATTACKS[name], "about": f"about <{name}>"})
    entry = next(entry for entry in bench.spec["entries"] if entry["model_id"] == model)
    after = f"{model}.{name}"
    evaluation, run = bench.root / "evaluation" / after, bench.root / "robustness" / model / name
    before = json.loads((bench.root / "evaluation" / model / "evaluation.json").read_text())
    dump(evaluation / "evaluation.json", {**before, "model": after, "metrics": {**GOOD, **values}})
    times = {"startup_seconds": 1.0, "work_seconds": 2.0, "write_seconds": 0.25}
    dump(evaluation / "summary.json", {**times, "flags": list(flags)})
    dump(run / "summary.json", {**times, "flags": []})
    dump(run / "provenance.json", {"program": "train", "git_commit": "c0ffee"})
    changed = {"model_id": after, "attack": name, "evaluation": str(evaluation), "run": str(run)}
    bench.spec.setdefault("attacked", []).append({**entry, **changed})


@pytest.fixture
def attacked(bench: Bench) -> Bench:
    """Two seeds of a method that learns fast again, and one that has collapsed, under two attacks."""
    for seed, probability in ((0, 0.1), (1, 0.2)):
        bench.add("npo", title="NPO", seed=seed, forget_probability=probability, model_utility=0.6)
    bench.add("ga", title="GA", flags=("collapsed",), forget_probability=0.0, model_utility=0.0)
    attack(bench, "target", "relearn", forget_probability=1.0, model_utility=0.9)
    attack(bench, "retrain", "relearn", forget_probability=0.3, model_utility=0.8)
    attack(bench, "npo-seed-0", "relearn", forget_probability=0.5, model_utility=0.7)
    attack(bench, "npo-seed-1", "relearn", forget_probability=0.4, model_utility=0.7)
    attack(bench, "ga", "relearn", flags=("collapsed",), forget_probability=0.0, model_utility=0.0)
    for model in ("target", "retrain", "npo-seed-0", "npo-seed-1"):
        attack(bench, model, "int4", forget_probability=0.25)
    attack(bench, "ga", "int4", forget_probability=None, model_utility=0.001)
    return bench


def table(folder, name: str) -> dict[str, dict[str, str]]:
    """Cells of an attack's table by model and title, with no escapes."""
    text = (folder / "table.md").read_text().split(f"## Robustness: {name}")[1].split("## ")[0]
    lines = [re.sub(r"\\(.)", r"\1", line) for line in text.splitlines() if line.startswith("|")]
    titles, _, *rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return {row[0]: dict(zip(titles, row, strict=True)) for row in rows}


def records(folder) -> list[dict[str, str]]:
    return list(csv.DictReader((folder / "table.csv").read_text().splitlines()))


def test_a_model_after_a_further_request_is_attacked_too(bench: Bench) -> None:
    """Only this has both: the row says its request, and its difference is from the model after that request."""
    bench.add("npo", title="NPO", forget_probability=0.5)
    bench.add("npo.second", title="NPO", forget_probability=0.1)
    attack(bench, "npo", "int4", forget_probability=0.6)
    attack(bench, "npo.second", "int4", forget_probability=0.3)
    later = {"method": "npo", "request": 2}
    bench.spec["later_requests"] = [{**bench.spec["entries"].pop(), **later}]
    bench.spec["attacked"][-1] |= later
    folder = bench.write()
    cells = {name: row["Forget probability ↓"] for name, row in table(folder, "int4").items()}
    assert cells == {
        "NPO": "0.500 → 0.600 (+0.100, q = 0.833)",
        "NPO, request 2": "0.100 → 0.300 (+0.200, q = 0.333)",
    }
    assert [row["value"] for row in records(folder) if row["request"] == "2" and row["attack"] == "int4"]


def test_a_table_shows_means_before_and_after_with_the_ratio(attacked: Bench) -> None:
    folder = attacked.write()
    relearned, rounded = table(folder, "relearn"), table(folder, "int4")
    column = "Forget probability ↓"
    # r = (0.3 - 0.2) / (0.45 - 0.15); q = 0.15 / 0.25
    assert relearned["NPO"][column] == "0.150 → 0.450 (+0.300, r = 0.333)"
    assert rounded["NPO"][column] == "0.150 → 0.250 (+0.100, q = 0.6)"
    assert relearned["Retrain" if "Retrain" in relearned else "retrain"][column] == "0.200 → 0.300 (+0.100)"
    assert relearned["GA"][column] == "0.000 → 0.000 (±0.000)", "what gains nothing has no ratio"
    assert rounded["GA"][column] == "–"
    assert rounded["GA"]["Model utility ↑"] == "0.000 → 0.001 (+0.001)"
    assert relearned["GA"]["Notes"] == "collapsed"
    assert list(relearned) == list(rounded) == ["target", "retrain", "NPO", "GA"]


def test_the_table_of_results_and_its_marks_are_those_without_attacks(attacked: Bench) -> None:
    text = (attacked.write() / "table.md").read_text()
    printed = (attacked.output / "table.csv").read_text()
    del attacked.spec["attacks"], attacked.spec["attacked"]
    plain = (attacked.write() / "table.md").read_text()
    assert text.startswith(plain.rstrip("\n")) and "Robustness" not in plain
    whole = [line for line in printed.splitlines() if ",relearn," not in line and ",int4," not in line]
    assert whole == (attacked.output / "table.csv").read_text().splitlines()


def test_the_printed_table_is_that_of_results(attacked: Bench, capsys) -> None:
    main(["--print", str(attacked.write())])
    printed = capsys.readouterr().out
    assert "→ 0.4" not in printed and printed.count("NPO") == 1


def test_csv_has_every_value_and_each_seeds_ratios(attacked: Bench) -> None:
    found = records(attacked.write())
    values = {
        (row["method"], row["seed"], row["attack"], row["metric"]): row["value"] for row in found if row["attack"]
    }
    assert float(values["npo", "1", "relearn", "forget_probability"]) == 0.4
    assert float(values["npo", "1", "relearn", "forget_probability_relearn_ratio"]) == pytest.approx(0.1 / 0.2)
    assert float(values["npo", "0", "relearn", "forget_probability_relearn_ratio"]) == pytest.approx(0.1 / 0.4)
    assert float(values["npo", "0", "int4", "forget_probability_quantisation_ratio"]) == pytest.approx(0.1 / 0.25)
    assert values["ga", "", "relearn", "forget_probability_relearn_ratio"] == ""
    assert ("npo", "0", "relearn", "model_utility_relearn_ratio") not in values, "utility is no knowledge to forget"
    ratios = [key for key in values if key[3].endswith(("_relearn_ratio", "_quantisation_ratio"))]
    assert {key[0] for key in ratios} == {"npo", "ga"}
    seeds = [float(row["value"]) for row in found if (row["method"], row["attack"]) == ("npo", "relearn")
             and row["metric"] == "forget_probability"]  # fmt: skip
    assert statistics.fmean(seeds) == pytest.approx(0.45)


def test_without_retrain_there_is_no_relearn_ratio(attacked: Bench) -> None:
    for key in ("entries", "attacked"):
        attacked.spec[key] = [entry for entry in attacked.spec[key] if entry["kind"] != "retrain"]
    assert table(attacked.write(), "relearn")["NPO"]["Forget probability ↓"] == "0.150 → 0.450 (+0.300)"


def test_a_retrain_that_learns_nothing_gives_no_ratio(attacked: Bench) -> None:
    attack(attacked, "retrain", "relearn", forget_probability=0.2)
    attacked.spec["attacked"] = [
        entry for entry in attacked.spec["attacked"][:1] + attacked.spec["attacked"][2:]
    ]  # with the new one in place of the first
    assert table(attacked.write(), "relearn")["NPO"]["Forget probability ↓"] == "0.150 → 0.450 (+0.300)"


def test_the_page_shows_attacks_their_times_and_their_provenance(attacked: Bench) -> None:
    page = (attacked.write() / "index.html").read_text()
    section = page.split('<h2 id="robustness">')[1].split("</section>")[0]
    assert "about &lt;relearn&gt;" in section and "about &lt;int4&gt;" in section
    assert "0.150 → 0.450" in section and "+0.300; r = 0.333" in section and "q = 0.6" in section
    assert "best" not in section.replace("marked as best", "")
    times = page.split('<h2 id="times">')[1].split("</section>")[0]
    assert re.search(r"npo-seed-0\.relearn.*?relearn", times) and re.search(r"npo-seed-0\.int4.*?quantise", times)
    assert times.index(">relearn<") < times.index(">quantise<") < times.index(">evaluate<")
    provenance = page.split('<h2 id="provenance">')[1]
    assert "ga.int4: quantise" in provenance and "ga.int4: evaluate" in provenance


def test_a_page_without_attacks_has_no_section(bench: Bench) -> None:
    bench.add("npo")
    assert "robustness" not in (bench.write() / "index.html").read_text().lower()


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"attack": "int8"}, r"attacked: 'target.relearn': no attack 'int8'; there are: \['relearn', 'int4'\]"),
        ({"model_id": "other.relearn"}, "attacked: 'other.relearn' is no entry's model_id with '.relearn' added"),
    ],
)
def test_attacked_models_of_nothing_are_refused(attacked: Bench, changes: dict[str, str], error: str) -> None:
    attacked.spec["attacked"][0] |= changes
    with pytest.raises(ValidationError, match=error):
        ReportSpec.model_validate(yaml.safe_load(yaml.safe_dump(attacked.spec)))
