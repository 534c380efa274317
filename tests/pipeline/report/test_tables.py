"""The tables of a report: what is in them, and which value is marked as best."""

from __future__ import annotations

import csv
import io
import re
import statistics

import pytest

from pipeline.benchmarks.base import Metric
from pipeline.benchmarks.tofu.evaluate import FAMILY
from pipeline.benchmarks.tofu.options import TofuOptions
from pipeline.report import read, tables
from pipeline.report.__main__ import main

METRICS = FAMILY.metrics(TofuOptions())


def rows(bench) -> dict[str, dict[str, tables.Cell]]:
    """Cells of the headline table by model and metric."""
    spec = bench.read()
    table = tables.table(spec, read.load(spec), METRICS)
    keys = [metric.key for metric in table.metrics]
    return {row.group.title: dict(zip(keys, row.cells, strict=True)) for row in table.rows}


def best(bench, key: str) -> set[str]:
    return {title for title, cells in rows(bench).items() if cells[key].best}


def records(bench) -> list[dict[str, str]]:
    spec = bench.read()
    return list(csv.DictReader(io.StringIO(tables.as_csv(spec, read.load(spec), METRICS))))


def markdown(bench) -> str:
    spec = bench.read()
    return tables.as_markdown(spec, read.load(spec), METRICS)


@pytest.mark.parametrize("begins", ["=", "+", "-", "@", "\t=", "\n=", "\uff1d"])
def test_no_cell_of_the_csv_is_a_formula(bench, begins: str) -> None:
    """Only this has texts that a spreadsheet would run; numbers stay numbers."""
    text = f"{begins}cmd|' /C calc'!A0"
    bench.spec |= {"experiment": text, "model": text}
    bench.spec["published"] = [{"method": "npo", "metric": "model_utility", "value": -0.5, "source": text}]
    bench.add("npo", model_utility=-0.25)
    found = next(row for row in records(bench) if (row["method"], row["metric"]) == ("npo", "model_utility"))
    assert found["experiment"] == found["model"] == found["published_source"] == f"'{text}"
    assert (found["value"], found["published"]) == ("-0.25", "-0.5")


def test_a_carriage_return_ends_no_row_of_the_csv(bench) -> None:
    bench.spec |= {"experiment": "one\r=cmd\x1b[2J"}
    bench.add("npo")
    assert {row["experiment"] for row in records(bench)} == {"one\\r=cmd\\x1b[2J"}


def test_csv_holds_every_value_at_full_precision(bench):
    bench.add("npo", seed=3, variant="strong", model_utility=0.1 + 0.2, extra=7)
    found = [row for row in records(bench) if row["method"] == "npo"]
    assert list(found[0]) == list(tables.CSV_COLUMNS)
    assert {row["metric"] for row in found} == {
        "forget_quality", "model_utility", "forget_probability", "forget_truth_ratio", "extra"
    }  # fmt: skip
    row = next(row for row in found if row["metric"] == "model_utility")
    assert float(row["value"]) == 0.1 + 0.2
    where = ("experiment", "benchmark", "split", "model", "variant", "seed")
    assert [row[key] for key in where] == ["trial", "mini", "forget10", "tiny", "strong", "3"]


def test_null_is_empty_in_csv_and_a_dash_in_the_table(bench):
    bench.add("npo", forget_quality=None)
    bench.add("ga")
    row = next(row for row in records(bench) if (row["method"], row["metric"]) == ("npo", "forget_quality"))
    assert row["value"] == ""
    assert rows(bench)["npo"]["forget_quality"].text == tables.NONE
    assert best(bench, "forget_quality") == {"ga"}


def test_order_is_target_retrain_methods(bench):
    bench.spec["entries"].reverse()
    bench.add("npo")
    bench.add("ga")
    assert list(rows(bench)) == ["target", "retrain", "npo", "ga"]


def test_best_follows_the_direction_of_each_metric(bench):
    bench.add("low", forget_quality=0.1, forget_probability=0.1, forget_truth_ratio=1.2)
    bench.add("high", forget_quality=0.2, forget_probability=0.3, forget_truth_ratio=0.9)
    assert best(bench, "forget_quality") == {"high"}
    assert best(bench, "forget_probability") == {"low"}
    assert best(bench, "forget_truth_ratio") == {"high"}  # 0.9 is closer to 1 than 1.2


def test_references_are_never_best(bench):
    bench.add("npo", forget_quality=1e-9, model_utility=0.1, forget_probability=0.9)
    assert all(best(bench, key) == {"npo"} for key in ("forget_quality", "model_utility", "forget_probability"))


@pytest.mark.parametrize("flag", ["collapsed", "unchanged"])
def test_flagged_models_are_never_best(bench, flag):
    bench.add("broken", flags=(flag,), forget_quality=0.9, model_utility=0.9, forget_probability=0.0)
    bench.add("npo")
    assert best(bench, "forget_quality") == best(bench, "model_utility") == {"npo"}
    assert re.search(rf"^\| broken \|.*\| {flag} \|$", markdown(bench), re.MULTILINE)


def test_one_collapsed_seed_keeps_a_row_from_being_best(bench):
    bench.add("ga", seed=0, model_utility=0.9)
    bench.add("ga", seed=1, model_utility=0.9, flags=("collapsed",))
    bench.add("npo", model_utility=0.2)
    assert best(bench, "model_utility") == {"npo"}
    assert "collapsed (1 of 2 seeds)" in markdown(bench)


def test_other_flags_are_shown_and_do_not_count_against_a_model(bench):
    bench.add("blur", flags=("zero-forget-gradient",), model_utility=0.7)
    bench.add("npo", model_utility=0.6)
    assert best(bench, "model_utility") == {"blur"}
    assert "zero-forget-gradient" in markdown(bench)


def test_values_that_read_the_same_share_the_mark(bench):
    bench.add("a", model_utility=0.70004)
    bench.add("b", model_utility=0.70001)
    bench.add("c", model_utility=0.699)
    assert best(bench, "model_utility") == {"a", "b"}


def test_seeds_give_mean_and_sample_deviation(bench):
    values = [0.2, 0.5, 0.6]
    for seed, value in enumerate(values):
        bench.add("npo", seed=seed, model_utility=value)
    cell = rows(bench)["npo"]["model_utility"]
    assert cell.text == f"{statistics.fmean(values):.3f} ± {statistics.stdev(values):.3f}"
    assert [row["seed"] for row in records(bench) if row["metric"] == "model_utility" and row["method"] == "npo"] == [
        "0", "1", "2"
    ]  # fmt: skip


def test_a_mean_over_some_seeds_says_so_and_is_not_best(bench):
    bench.add("npo", seed=0, forget_quality=0.9)
    bench.add("npo", seed=1, forget_quality=None)
    bench.add("ga", forget_quality=0.1)
    assert rows(bench)["npo"]["forget_quality"].text == "9.00e-01 (1 of 2 seeds)"
    assert best(bench, "forget_quality") == {"ga"}


def test_variants_are_rows_of_their_own(bench):
    bench.add("npo", variant="strong", title="NPO")
    bench.add("npo", title="NPO")
    assert list(rows(bench))[2:] == ["NPO (strong)", "NPO"]


def test_forget_quality_is_scientific_and_utility_is_not(bench):
    bench.add("npo", forget_quality=3.14159e-7, model_utility=0.12345)
    cells = rows(bench)["npo"]
    assert (cells["forget_quality"].text, cells["model_utility"].text) == ("3.14e-07", "0.123")


def test_non_finite_values_are_no_candidates(bench):
    bench.add("ga", forget_probability=float("nan"))
    bench.add("npo", forget_probability=0.5)
    assert best(bench, "forget_probability") == {"npo"}


def published(**changes):
    return {"method": "npo", "metric": "model_utility", "value": 0.58, "source": "Paper, Table 2", **changes}


def test_published_numbers_stand_beside_ours(bench):
    bench.add("npo", seed=0)
    bench.add("npo", variant="strong", title="NPO strong")
    bench.spec["published"] = [
        published(),
        published(method="target", value=0.61, split="forget10", model="tiny"),
        published(method="target", value=0.99, split="forget01"),
        published(method="retrain", value=0.98, model="another"),
        published(method="not-run"),
    ]
    found = {
        (r["method"], r["variant"], r["published"], r["published_source"]) for r in records(bench) if r["published"]
    }
    assert found == {("npo", "", "0.58", "Paper, Table 2"), ("target", "", "0.61", "Paper, Table 2")}
    assert r"(0.580, Δ −0.080 \[1\])" in markdown(bench) and r"(\[1\] Paper, Table 2)" in markdown(bench)
    assert "No source gives numbers of NPO strong here." in markdown(bench)


def test_numbers_of_another_model_stand_beside_ours_without_a_difference(bench):
    """Only here are they of another model: what may be compared is said wherever the table is, and what is not."""
    bench.add("npo", seed=0)
    bench.spec["published_of"] = "large"
    bench.spec["published"] = [published(model="large"), published(model="tiny", value=0.123)]
    said = "They are of large, not of tiny: what may be compared is how the methods of one table stand to each other"
    text = markdown(bench)
    assert r"(0.580 \[1\])" in text and "Δ" not in text and "0.123" not in text and said in text
    assert "In parentheses: published numbers (" in text
    folder = bench.write()
    page = (folder / "index.html").read_text()
    assert said in page and "Δ: ours" not in page
    assert said in (folder / "table.tex").read_text()


def test_published_number_of_an_unknown_metric_is_an_error(bench):
    bench.spec["published"] = [published(metric="model_utlity")]
    with pytest.raises(ValueError, match=r"published: unknown metric 'model_utlity'; allowed: .*model_utility"):
        rows(bench)


def test_several_sources_stand_side_by_side_each_named(bench):
    bench.add("npo")
    bench.spec["published"] = [published(), published(value=0.6, source="Other")]
    (row,) = (r for r in records(bench) if r["published"])
    assert (row["published"], row["published_source"]) == ("0.58; 0.6", "Paper, Table 2; Other")
    assert r"(0.580, Δ −0.080 \[1\]; 0.600, Δ −0.100 \[2\])" in markdown(bench)
    assert r"(\[1\] Paper, Table 2; \[2\] Other)" in markdown(bench)
    bench.spec["published"] = [published(), published(value=0.6)]
    with pytest.raises(ValueError, match="several numbers for 'npo', metric 'model_utility': Paper, Table 2"):
        rows(bench)


def test_a_variant_has_the_numbers_that_name_it(bench):
    bench.add("npo", variant="strong", title="NPO strong")
    bench.spec["published"] = [published(value=0.1), published(method="npo-strong", value=0.2)]
    assert rows(bench)["NPO strong"]["model_utility"].published == (("0.200, Δ +0.300", "Paper, Table 2"),)


def test_a_metric_with_published_numbers_is_in_the_headline_table(bench):
    """Only this shows a number of another code's metric, as MUSE's, beside the headline metrics."""
    assert [metric.key for metric in METRICS if metric.key == "retain_truth_ratio" and not metric.headline]
    bench.add("npo", retain_truth_ratio=0.5)
    assert "retain_truth_ratio" not in rows(bench)["npo"]
    bench.spec["published"] = [published(metric="retain_truth_ratio", value=0.4)]
    assert rows(bench)["npo"]["retain_truth_ratio"].published == (("0.400, Δ +0.100", "Paper, Table 2"),)


def test_markdown_marks_best_and_escapes(bench):
    bench.add("npo", title="a|b*<i>", model_utility=0.7)
    bench.add("ga", model_utility=0.6)
    text = markdown(bench)
    assert r"| a\|b\*\<i> | 1 |" in text
    assert "**0.700**" in text and "**0.600**" not in text


@pytest.mark.slow
def test_print_aligns_columns_and_names_the_page(bench, capsys):
    bench.add("npo", title="a|b_c", model_utility=0.7)
    bench.add("longer-name", flags=("collapsed",))
    folder = bench.write()
    main(["--print", str(folder)])
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == f"report: {folder / 'index.html'}"
    table = lines[: lines.index("")]
    ruler = next(line for line in table if line.startswith("---"))
    ends = [match.end() for match in re.finditer("-+", ruler)]
    body = table[table.index(ruler) + 1 :]
    assert [line.split()[0] for line in body] == ["target", "retrain", "a|b_c", "longer-name"]
    assert "0.700*" in body[2] and "collapsed" in body[3]
    for line in body:
        assert all(line[end : end + 2].strip() == "" for end in ends[1:-1]), line


def test_print_without_a_report_names_the_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"table\.md: there is no such file"):
        main(["--print", str(tmp_path)])


def test_negative_numbers_of_two_publications_stay_numbers_in_the_csv(bench) -> None:
    bench.spec["published"] = [
        {"method": "npo", "metric": "model_utility", "value": value, "source": source}
        for value, source in ((-57.2, "A"), (-60.0, "B"))
    ]
    bench.add("npo", model_utility=-50.0)
    found = next(row for row in records(bench) if (row["method"], row["metric"]) == ("npo", "model_utility"))
    assert found["published"] == "-57.2; -60.0"


def test_counts_have_all_their_digits() -> None:
    """Only this counts to more than four digits: 14042 questions of MMLU are not 14041."""
    count = Metric("empty_generations", "", "lower", "", "")
    assert [tables.formatted(count, value, True) for value in (7.0, 14041.0, 14042.0)] == ["7", "14041", "14042"]
    assert tables.formatted(count, 14041.5, True) == "1.404e+04", "a mean over seeds is none"
