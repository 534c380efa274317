"""Every family, tied and untied, at every layout: transformers' logits, and a bit-exact round trip."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from safetensors.torch import load_file

from tests.support import tiny
from tests.support.at_layout import INITIALISED, check
from tests.support.distributed import run_ranks

# By stages alone every family trains in ``tests/families``.
LAYOUTS = {
    "tp1": {},
    "tp2": {"tensor": 2},
    "dp2": {"data": 2},
    "tp2pp2": {"tensor": 2, "pipeline": 2, "pipeline_split": [1, 2]},
}
STORIES_LOSS = 0.100137


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    tiny.write(folder)
    return folder


@pytest.fixture(scope="module")
def stories(shared_data) -> Path | None:
    folder = shared_data / "models" / "stories260K"
    return folder if folder.is_dir() else None


@pytest.fixture(
    scope="module",
    params=[pytest.param(name, marks=[] if name == "tp1" else pytest.mark.slow) for name in LAYOUTS],
)
def run(request, models, stories, tmp_path_factory):
    """The facts that each rank of a layout returned, and the folder it wrote."""
    layout = LAYOUTS[request.param]
    out = tmp_path_factory.mktemp(request.param)
    ranks = math.prod(layout.get(axis, 1) for axis in ("tensor", "pipeline", "data"))
    if ranks == 1:
        return [check(models, out, layout, stories)], out
    return run_ranks(check, ranks, models, out, layout, stories), out


def test_logits_are_those_of_transformers(run):
    for name in tiny.MODELS:
        facts = [rank[name] for rank in run[0] if "difference" in rank[name]]
        assert facts, name
        assert max(fact["difference"] for fact in facts) < 2e-5, name
        assert all(fact["padding_logit"] == -math.inf for fact in facts), name


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_round_trip_is_bit_exact(run, models, precision):
    for name in tiny.MODELS:
        assert_equal(run[1] / precision / name, models / precision / name)
        config = json.loads((run[1] / precision / name / "config.json").read_text())
        before = json.loads((models / precision / name / "config.json").read_text())
        assert config == {**before, "torch_dtype": before["dtype"]}, name


def test_several_files_hold_the_same_and_every_rank_writes_some(run, models):
    for name in tiny.MODELS:
        folder = run[1] / "files" / name
        index = json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]
        whole = load_file(models / "fp32" / name / "model.safetensors")
        files = {file: load_file(folder / file) for file in sorted(set(index.values()))}
        assert {path.name for path in folder.glob("*.safetensors")} == set(files)
        assert {key: file for file, tensors in files.items() for key in tensors} == index
        assert set(index) == set(whole)
        assert all(files[file][key].equal(whole[key]) for key, file in index.items()), name
        written = [rank[name]["files"] for rank in run[0]]
        assert sum(written) == len(files) > 4 and min(written) > 0, name


@pytest.mark.slow
@pytest.mark.parametrize("layout", [{"tensor": 2, "expert": 2}, {"tensor": 4, "expert": 2}], ids=["ep2", "ep2tp2"])
def test_experts_on_different_ranks(layout, models, tmp_path):
    """Of mixtures of experts alone: the same logits, and the same files as where each expert is on every rank."""
    facts = run_ranks(check, layout["tensor"], models, tmp_path, layout, None, tiny.MIXTURES)
    for name in tiny.MIXTURES:
        assert max(rank[name]["difference"] for rank in facts) < 2e-5, name
        assert_equal(tmp_path / "fp32" / name, models / "fp32" / name)
        assert_equal(tmp_path / "bf16" / name, models / "bf16" / name)


def test_rows_that_pad_the_vocabulary_are_zero(run):
    padding = [
        value for rank in run[0] for facts in rank.values() for key, value in facts.items() if "padding of" in key
    ]
    assert set(padding) <= {0.0}


def test_both_copies_of_a_tied_embedding_are_equal(run):
    for name in (name for name in tiny.MODELS if name.endswith("-tied")):
        copies = [rank[name] for rank in run[0]]
        first = {facts.get("embedding.word_embeddings.weight") for facts in copies} - {None}
        last = {facts.get("output_layer.weight") for facts in copies} - {None}
        assert first, name
        assert not last or last == first, name


@pytest.mark.parametrize("name", INITIALISED)
def test_initial_values_do_not_depend_on_the_layout(run, models, name):
    """Checked against the values drawn one by one, as the documentation of ``InitialValues`` says."""
    from megatron_ext.checkpoint.reading import read_config
    from megatron_ext.checkpoint.tensor_sources import InitialValues

    source = InitialValues(read_config(models / "fp32" / name), seed=3)
    written = load_file(run[1] / "initial" / name / "model.safetensors")
    assert set(written) == set(source.shapes)
    for key, value in written.items():
        assert value.equal(source.read(key, ()))


def test_stories_scores_its_check_sentence(run, stories):
    if stories is None:
        pytest.skip("no models/stories260K in the shared data folder")
    losses = [rank["stories"]["loss"] for rank in run[0] if "stories" in rank]
    assert losses
    assert losses == pytest.approx([STORIES_LOSS] * len(losses), abs=1e-5)


def assert_equal(given: Path, expected: Path) -> None:
    """Two folders hold the same tensors: names, types, shapes, bytes."""
    first, second = load_file(given / "model.safetensors"), load_file(expected / "model.safetensors")
    assert set(first) == set(second)
    for name, value in second.items():
        assert first[name].dtype == value.dtype
        assert first[name].equal(value), name
