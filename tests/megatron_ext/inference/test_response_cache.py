import json

import pytest

from megatron_ext.checkpoint import reading
from megatron_ext.inference.generation import GenerateRequest, generate
from megatron_ext.inference.response_cache import ResponseCache, key_of
from megatron_ext.inference.scoring import ScoreRequest, score
from tests.support import inference_cases as cases

pytestmark = pytest.mark.slow

IDENTITY = {"model": "a", "layout": [1, 1, 1]}


def test_values_are_found_again(tmp_path, alone):
    first = ResponseCache(tmp_path / "answers", IDENTITY, alone)
    assert len(first) == 0
    first.add([("a", [1.5, None]), ("b", [2, [0.1]])])
    again = ResponseCache(tmp_path / "answers", IDENTITY, alone)
    assert (again.get("a"), again.get("b"), again.get("c"), len(again)) == ([1.5, None], [2, [0.1]], None, 2)
    again.add([("c", [3])])
    assert len(ResponseCache(tmp_path / "answers", IDENTITY, alone)) == 3
    again.discard()
    assert not (tmp_path / "answers").exists()


def test_a_line_that_was_cut_short_is_left_out_and_lines_follow_it(tmp_path, alone):
    ResponseCache(tmp_path, IDENTITY, alone).add([("a", 1), ("b", 2)])
    file = tmp_path / "rank-0.jsonl"
    file.write_text(file.read_text()[:-3])
    again = ResponseCache(tmp_path, IDENTITY, alone)
    assert (again.get("a"), again.get("b")) == (1, None)
    again.add([("b", 2)])
    assert [json.loads(line) for line in file.read_text().splitlines()] == [["a", 1], ["b", 2]]


def test_another_models_answers_are_dropped(tmp_path, alone, capsys):
    ResponseCache(tmp_path, IDENTITY, alone).add([("a", 1)])
    assert ResponseCache(tmp_path, {**IDENTITY, "model": "b"}, alone).get("a") is None
    assert f"{tmp_path} is of another model, data, layout or code (model)" in capsys.readouterr().out


def test_answers_of_other_code_are_dropped(tmp_path, alone, capsys, monkeypatch):
    ResponseCache(tmp_path, IDENTITY, alone).add([("a", 1)])
    monkeypatch.setattr("megatron_ext.checkpoint.identity.code", lambda: "other")
    assert ResponseCache(tmp_path, IDENTITY, alone).get("a") is None
    assert "layout or code (code): starting from the beginning" in capsys.readouterr().out


@pytest.mark.parametrize("text", ["", "{", "[]", "\0\0", "\udcff"])
def test_an_identity_that_cannot_be_read_is_another_one(text, tmp_path, alone, capsys):
    ResponseCache(tmp_path, IDENTITY, alone).add([("a", 1)])
    (tmp_path / "identity.json").write_bytes(text.encode(errors="surrogateescape"))
    assert ResponseCache(tmp_path, IDENTITY, alone).get("a") is None
    assert "starting from the beginning" in capsys.readouterr().out
    ResponseCache(tmp_path, IDENTITY, alone).add([("a", 2)])
    assert ResponseCache(tmp_path, IDENTITY, alone).get("a") == 2


def test_a_line_that_is_none_is_left_out(tmp_path, alone, capsys):
    """As a machine that crashed may leave it."""
    ResponseCache(tmp_path, IDENTITY, alone).add([("a", 1), ("b", 2), ("c", 3)])
    file = tmp_path / "rank-0.jsonl"
    first, second, third = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(first + b"\0" * (len(second) - 1) + b"\n" + third)
    again = ResponseCache(tmp_path, IDENTITY, alone)
    assert (again.get("a"), again.get("b"), again.get("c")) == (1, None, 3)
    assert f"{file}, line 2: is left out" in capsys.readouterr().out


def test_without_a_folder_nothing_is_kept(alone):
    answers = ResponseCache(None, IDENTITY, alone)
    answers.add([("a", 1)])
    assert answers.get("a") is None
    answers.discard()


def test_keys_tell_requests_apart():
    keys = [
        key_of("score", [1], [2, 3], False),
        key_of("score", [1, 2], [3], False),
        key_of("score", [1], [2, 3], True),
    ]
    assert len({*keys, key_of("generate", [1], [2, 3], False)}) == 4
    assert key_of("score", [1], (2, 3)) == key_of("score", [1], [2, 3])


def test_a_killed_evaluation_goes_on_where_it_was(tmp_path, inference, alone, monkeypatch):
    model = reading.load(inference[0] / cases.MODELS[0], alone)
    requests = [ScoreRequest(*pair, tokenwise=True) for pair in cases.requests()]
    prompts = [GenerateRequest(prompt, 5) for prompt in cases.prompts()]

    def run():
        known = ResponseCache(tmp_path, IDENTITY, alone)
        return (
            score(model, alone, requests, 100, progress=False, answers=known),
            generate(model, alone, prompts, [], 100, progress=False, answers=known),
        )

    passes, allowed, forward = [], [None], model.forward

    def dying(ids, *args, **options):
        passes.append(tuple(ids.flatten().tolist()))
        if len(passes) == allowed[0]:
            raise KeyboardInterrupt
        return forward(ids, *args, **options)

    monkeypatch.setattr(model, "forward", dying)
    whole = score(model, alone, requests, 100, progress=False), generate(model, alone, prompts, [], 100, progress=False)
    read = set(passes)
    counts = []
    for limit in (3, 9, 40, 1000):
        allowed[:] = [limit]
        passes.clear()
        try:
            assert run() == whole
        except KeyboardInterrupt:
            counts.append(len(ResponseCache(tmp_path, IDENTITY, alone)))
            kept = tmp_path / "rank-0.jsonl"
            kept.write_text(
                "".join(kept.read_text().splitlines(keepends=True)[:-1])
            )  # a batch of which an answer lacks
        assert read.issuperset(passes), "in other batches numbers would be rounded otherwise"
    assert counts == sorted(set(counts)) and counts[0] > 0
    passes.clear()
    assert run() == whole and passes == []


@pytest.mark.parametrize("value", [0.1, 1e-30, -123.456789012345])
def test_numbers_come_back_as_they_were(value, tmp_path, alone):
    ResponseCache(tmp_path, IDENTITY, alone).add([("a", value)])
    assert ResponseCache(tmp_path, IDENTITY, alone).get("a") == value
