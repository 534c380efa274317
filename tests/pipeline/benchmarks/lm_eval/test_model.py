"""Our engine behind lm-evaluation-harness, beside the harness's own HFLM."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pipeline.data.errors import DataError
from pipeline.data.tokenizer import Tokenizer
from tests.support import lm_eval_cases as cases
from tests.support.distributed import run_ranks

LAYOUTS = {2: [{"tensor": 2}, {"pipeline": 2}, {"data": 2}], 4: [{"tensor": 2, "pipeline": 2}]}


@pytest.fixture(scope="module")
def harness(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, list[Any]]]:
    folder = tmp_path_factory.mktemp("model")
    return folder, cases.write(folder)


def check(results: dict[str, Any], expected: dict[str, list[Any]]) -> None:
    sums = [log_prob for log_prob, _ in results["loglikelihood"]]
    assert sums == pytest.approx([log_prob for log_prob, _ in expected["loglikelihood"]], rel=0, abs=1e-4)
    assert [greedy for _, greedy in results["loglikelihood"]] == [greedy for _, greedy in expected["loglikelihood"]]
    rolling = [total / 64 for total in results["loglikelihood_rolling"]]  # sums of up to 200 tokens
    assert rolling == pytest.approx([total / 64 for total in expected["loglikelihood_rolling"]], rel=0, abs=1e-4)
    assert results["generate_until"] == expected["generate_until"]
    assert results["loglikelihood_cut"] == [("music", 11), ("music", 12)]
    assert results["loglikelihood_rolling_cut"] == []
    assert ("music", 5) in results["generate_until_cut"]


@pytest.mark.slow
def test_one_process_answers_as_hflm(harness: tuple[Path, dict[str, list[Any]]]) -> None:
    folder, expected = harness
    assert len(set(expected["generate_until"])) > 4 and any(greedy for _, greedy in expected["loglikelihood"])
    check(cases.at_layout(folder, {}), expected)


@pytest.mark.slow
@pytest.mark.timeout(120)
@pytest.mark.parametrize("ranks", LAYOUTS)
def test_every_rank_of_every_layout_answers_as_hflm(ranks: int, harness: tuple[Path, dict[str, list[Any]]]) -> None:
    folder, expected = harness
    for rank in run_ranks(cases.at_layouts, ranks, folder, LAYOUTS[ranks]):
        assert [results["layout"] for results in rank] == LAYOUTS[ranks]
        for results in rank:
            check(results, expected)


class Silent:
    """An ``Ask`` that must not be asked."""

    rank, context = 0, 64

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer


@pytest.mark.parametrize(
    ("kind", "arguments", "message"),
    [
        ("generate_until", ("drum", {"temperature": 0.8, "top_p": 2}), "'music': top_p: 2.0; allowed: "),
        ("generate_until", ("drum", {"do_sample": True, "temperature": -1}), "'music': temperature: -1.0; allowed: "),
        ("generate_until", ("drum", {"num_beams": 4}), "'music': unknown generation setting 'num_beams'"),
        ("generate_until", ("drum", {"max_gen_toks": 64}), "'music': max_gen_toks is 64; the model's context is 64"),
        ("loglikelihood", ("drum", ""), "'music', document 3: a context of 3 tokens and a continuation of 0"),
        ("loglikelihood", ("", "drum " * 80), "'music', document 3: a context of 1 tokens and a continuation of 8"),
    ],
)
def test_a_request_that_cannot_be_answered_names_its_task(
    kind: str, arguments: tuple[Any, ...], message: str, tmp_path: Path
) -> None:
    from lm_eval.api.instance import Instance

    from pipeline.benchmarks.lm_eval.model import HarnessLM

    cases.tokenizer(tmp_path)
    request = Instance(kind, {}, arguments, 0, ("music", 3, 1))
    with pytest.raises(DataError, match=message):
        getattr(HarnessLM(Silent(Tokenizer.load(tmp_path))), kind)([request])
