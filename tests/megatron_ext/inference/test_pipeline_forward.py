from types import SimpleNamespace

import pytest

from megatron_ext.checkpoint import reading
from megatron_ext.config import Layout
from megatron_ext.inference import pipeline_forward as inference
from megatron_ext.inference.generation import generate
from tests.support import inference_cases as cases
from tests.support.distributed import run_ranks

# By number of ranks: a start of processes takes longer than what they compute.
LAYOUTS = {
    2: [{"tensor": 2}, {"pipeline": 2}, {"data": 2}],
    4: [{"tensor": 2, "pipeline": 2}, {"pipeline": 2, "data": 2}],
}


def _ranks(**layout):
    return SimpleNamespace(layout=Layout(**layout))


def test_batches_hold_every_index_once_within_the_budget_longest_first():
    lengths = [5, 1, 9, 9, 3, 2, 30, 8]
    batches = inference.plan(lengths, 20, _ranks())
    assert batches == [[6], [2, 3], [7, 0], [4, 5, 1]]
    assert all(len(b) * max(lengths[i] for i in b) <= 20 for b in batches[1:])
    assert inference.plan([], 20, _ranks()) == []


def test_batches_are_small_enough_for_every_replica_and_stage_to_have_one():
    assert [len(b) for b in inference.plan([4] * 10, 1000, _ranks())] == [10]
    assert [len(b) for b in inference.plan([4] * 10, 1000, _ranks(data=2))] == [5, 5]
    assert [len(b) for b in inference.plan([4] * 10, 1000, _ranks(data=2, pipeline=2))] == [3, 3, 3, 1]


def test_equal_items_are_found_once():
    unique = inference.deduplicate(["b", "a", "b", "c", "a"], key=str)
    assert (unique.items, unique.place_of) == (["b", "a", "c"], [0, 1, 0, 2, 1])


@pytest.mark.slow
@pytest.mark.timeout(120)
@pytest.mark.parametrize("ranks", LAYOUTS)
def test_every_rank_of_every_layout_gets_the_results_of_transformers(ranks, inference, shared_data, alone):
    folder, expected = inference
    stories = shared_data / "models" / "stories260K"
    stories = stories if stories.is_dir() else None
    models = cases.MODELS if ranks == 2 else cases.MODELS[:1]
    end_ids = {name: expected[name]["end_ids"] for name in models}
    drawn = {}  # of one process and batches of one row, where the layouts have larger ones
    for name in models:
        model = reading.load(folder / name, alone)
        drawn[name] = generate(model, alone, cases.sampled(), end_ids[name], 1, progress=False)
    for rank in run_ranks(cases.at_layouts, ranks, folder, LAYOUTS[ranks], end_ids, stories):
        assert [results["layout"] for results in rank] == LAYOUTS[ranks]
        for results in rank:
            for name in models:
                assert results[name]["log_probs"] == pytest.approx(expected[name]["log_probs"], rel=0, abs=1e-4)
                assert results[name]["new"] == expected[name]["new"]
                assert results[name]["drawn"] == drawn[name]
                for ours, theirs in zip(results[name]["tokenwise"], expected[name]["tokenwise"][::2], strict=True):
                    assert ours[3] == theirs[3]
                    for own, wanted in zip(ours[:3], theirs[:3], strict=True):
                        assert own == pytest.approx(wanted, rel=0, abs=1e-4)
                again = results[f"{name}_again"]
                distinct = len(cases.requests()) + len(cases.prompts()) + len(cases.sampled())
                assert (results[name]["known"], again["known"]) == (0, distinct)
                assert all(again[key] == results[name][key] for key in ("log_probs", "tokenwise", "new", "drawn"))
            assert results["argmax"] == cases.TIES_ARGMAX
            if stories is not None:
                assert -results["stories"] / (len(cases.STORY) - 1) == pytest.approx(0.100137, abs=1e-5)
