"""That the benchmarks run and compare like with like; their figures belong to a quiet machine."""

from __future__ import annotations

import contextlib
import io
import json
import runpy
import subprocess
import sys
from typing import Any

import pytest

from perf import __main__ as program
from perf import generation
from perf.common import Options, in_turns, result
from tests.support.distributed import run_ranks

GIVEN = Options(size="tiny", threads=1, steps=3)


def printed(name: str, arguments: list[str]) -> str:
    """What ``python -m perf.<name>`` prints, in this process."""
    sys.argv[1:] = arguments
    with contextlib.redirect_stdout(io.StringIO()) as lines:
        runpy.run_module(f"perf.{name}", run_name="__main__")
    return lines.getvalue()


@pytest.mark.long
@pytest.mark.parametrize("name", sorted({name for name, _, _ in program.PLAN}))
def test_a_benchmark_runs(name: str) -> None:
    arguments = ["--size", "tiny", "--steps", "2"]
    if name in ("generation", "reference"):  # as the program calls each; the second starts processes of its own
        (found,) = program.measured(name, *arguments)
    else:
        found = json.loads(run_ranks(printed, 1, name, arguments)[0])
    assert (found["benchmark"], found["size"], found["threads"], found["steps"]) == (name, "tiny", 1, 2)
    assert len(found["seconds"]) == 2 and min(found["seconds"].values()) > 0
    assert 0 < found["spread"][0] <= found["ratio"] <= found["spread"][1]


def test_variants_take_turns_and_the_first_round_is_not_timed() -> None:
    taken: list[tuple[str, int]] = []

    def variant(name: str) -> Any:
        def step(i: int) -> list[float]:
            taken.append((name, i))
            return [float(i), 0.0]

        return step

    seconds = in_turns({"a": variant("a"), "b": variant("b")}, GIVEN)

    assert taken == [("a", 0), ("b", 0), ("b", 0), ("a", 0), ("a", 1), ("b", 1), ("b", 2), ("a", 2)]
    assert {name: len(values) for name, values in seconds.items()} == {"a": 3, "b": 3}


def test_variants_with_other_losses_are_not_compared() -> None:
    with pytest.raises(AssertionError, match=r"step 0: losses \[\[1.0\], \[1.01\]\]"):
        in_turns({"a": lambda i: [1.0], "b": lambda i: [1.01]}, GIVEN)


def test_the_ratio_is_the_median_of_ratios() -> None:
    found = result("x", GIVEN, {"a": [1.0, 4.0, 3.0], "b": [2.0, 4.0, 1.0]}, bound=0.99)
    assert found["seconds"] == {"a": 3.0, "b": 2.0}
    assert (found["ratio"], found["spread"], found["met"]) == (1.0, [0.5, 3.0], False)


@pytest.mark.parametrize(("bound", "status", "said"), [(0.6, 0, "met"), (0.4, 1, "exceeded")])
def test_the_exit_status_says_whether_bounds_are_met(
    bound: float, status: int, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = result("x", GIVEN, {"a": [1.0], "b": [2.0]}, bound)
    monkeypatch.setattr(program, "measured", lambda *_: [found])
    assert program.main(["--size", "10M"]) == status
    table = capsys.readouterr().out
    assert table.count("| x | tiny | a 1.00, b 2.00 | 0.500 (0.500, 0.500) |") == sum(
        size == "10M" for _, size, _ in program.PLAN
    )
    assert said in table


def test_a_benchmark_that_fails_does_not_lose_the_others(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def measured(name: str, *_: str) -> list[dict[str, Any]]:
        if name == "rmu":
            raise subprocess.CalledProcessError(-9, ["python"])
        return [result(name, GIVEN, {"a": [1.0], "b": [2.0]}, 0.6)]

    monkeypatch.setattr(program, "measured", measured)
    assert program.main(["--size", "10M"]) == 1
    said = capsys.readouterr().out
    assert "| transformers_loop | tiny |" in said and said.endswith("rmu 10M failed, exit status -9\n")


def test_a_size_that_no_benchmark_has_is_no_success(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        program.main(["--size", "1M"])
    assert stopped.value.code == 2 and "'10M', '100M', '2M'" in capsys.readouterr().err


@pytest.mark.slow
def test_answers_of_another_length_are_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    """All variants' alike: that they agree would say nothing."""
    monkeypatch.setattr("perf.generation.generate", lambda model, ranks, requests, *_, **__: [[5]] * len(requests))
    monkeypatch.setattr("megatron_ext.checkpoint.reading.fill", lambda *_: None)
    with pytest.raises(AssertionError, match="not what was generated"):
        generation.measure(GIVEN)
