import gc
from types import SimpleNamespace

import pytest
import torch

from megatron_ext.checkpoint import reading
from megatron_ext.config import Layout
from megatron_ext.distributed.vocab_parallel import VocabularyShards
from megatron_ext.inference import answering, generation
from megatron_ext.inference.generation import GenerateRequest, generate
from megatron_ext.inference.lookup import Lookup
from megatron_ext.model.cache import Cache
from tests.support import inference_cases as cases
from tests.support import tiny


@pytest.fixture(scope="module")
def model(inference, alone):
    return reading.load(inference[0] / cases.MODELS[0], alone)


def of(prompts, new, stops=()):
    return [GenerateRequest(prompt, new, stops) for prompt in prompts]


@pytest.fixture
def passes(model):
    """Tokens of each forward pass."""
    tokens = []
    handle = model.register_forward_pre_hook(lambda _, inputs: tokens.append(inputs[0].numel()))
    yield tokens
    handle.remove()


@pytest.fixture
def guessing_nothing(monkeypatch):
    monkeypatch.setattr(Lookup, "guess", lambda self, most: [])


@pytest.mark.parametrize("name", cases.MODELS)
@pytest.mark.parametrize("token_budget", [1, 200, 100_000])
def test_tokens_are_those_of_transformers_in_prompt_order(name, token_budget, inference, alone):
    folder, expected = inference
    model = reading.load(folder / name, alone)
    end_ids = expected[name]["end_ids"]
    new = generate(model, alone, of(cases.prompts(), cases.NEW_TOKENS), end_ids, token_budget, progress=False)
    assert new == expected[name]["new"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gptoss-untied", "deepseek-untied"])
def test_attention_of_a_familys_own_has_a_cache(name, tmp_path, alone):
    """Latent attention, and sinks with windows: every token is the best of a pass over all that is before it."""
    tiny.write(tmp_path, [name])
    model, prompts = reading.load(tmp_path / "fp32" / name, alone), cases.prompts()
    made = generate(model, alone, of(prompts, cases.NEW_TOKENS), [], 200, progress=False)
    assert max(map(len, made)) == cases.NEW_TOKENS
    for prompt, new in zip(prompts, made, strict=True):
        scores = tiny.logits(model, alone, torch.tensor([prompt + new]))[0, len(prompt) - 1 : -1]
        chosen = scores.gather(-1, torch.tensor(new, dtype=torch.int64).unsqueeze(-1)).squeeze(-1)
        torch.testing.assert_close(chosen, scores.amax(-1), atol=1e-4, rtol=0)


@pytest.mark.usefixtures("guessing_nothing")
def test_a_token_costs_one_single_token_pass_after_one_prefill(model, alone, passes):
    prompts = [[5] * 7, [6] * 5, [5] * 7]
    assert [len(row) for row in generate(model, alone, of(prompts, 9), [], 1000, progress=False)] == [9, 9, 9]
    assert passes == [7 + 5] + [2] * 8


def test_what_prompts_begin_with_alike_is_read_once(model, alone, passes):
    """Questions after the same examples: tokens are those of each prompt by itself."""
    prompts = [[7] * 20 + question for question in ([8, 9, 10, 11], [8, 9, 12], [13] * 4)]
    together = generate(model, alone, of(prompts, 1), [], 1000, progress=False)
    assert passes == [20 + 4 + 1 + 4]
    assert together == [generate(model, alone, of([prompt], 1), [], 1000, progress=False)[0] for prompt in prompts]


@pytest.mark.parametrize("name", cases.MODELS)
def test_guesses_change_no_token(name, inference, alone, monkeypatch):
    """Right and wrong ones, of any number, in rows beside others: tokens are those of a pass for each."""
    model, prompts = reading.load(inference[0] / name, alone), cases.prompts()
    guess = Lookup.guess
    monkeypatch.setattr(Lookup, "guess", lambda self, most: [])
    plain = generate(model, alone, of(prompts, cases.NEW_TOKENS), [], 300, progress=False)
    full = [prompt + new for prompt, new in zip(prompts, plain, strict=True)]
    right = wrong = 0

    def oracle(self, most):
        nonlocal right, wrong
        text = next(text for text in full if text[: len(self._text)] == self._text)
        place = len(self._text)
        found = text[place : place + min(most, place % 5)]
        if len(found) > 2:
            wrong += 1
            found[2] = (found[2] + 1) % tiny.VOCABULARY
        right += len(found) in (1, 2)
        return found

    monkeypatch.setattr(Lookup, "guess", oracle)
    assert generate(model, alone, of(prompts, cases.NEW_TOKENS), [], 300, progress=False) == plain
    assert right > 5 and wrong > 5
    monkeypatch.setattr(Lookup, "guess", guess)
    assert generate(model, alone, of(prompts, cases.NEW_TOKENS), [], 300, progress=False) == plain


def test_right_guesses_save_passes_and_wrong_ones_cost_none(model, alone, passes, monkeypatch):
    """An answer that a guess knows takes a pass for every guess; end tokens, limits and stops hold within it."""
    prompt = [5, 6, 7]
    monkeypatch.setattr(Lookup, "guess", lambda self, most: [])
    (new,) = generate(model, alone, of([prompt], 20), [], 1000, progress=False)
    text = prompt + new
    monkeypatch.setattr(Lookup, "guess", lambda self, most: text[len(self._text) :][: min(most, 4)])
    passes.clear()
    assert generate(model, alone, of([prompt], 20), [], 1000, progress=False) == [new]
    assert passes == [3, 5, 5, 5, 4]
    end = new[6]
    assert generate(model, alone, of([prompt], 20), [end], 1000, progress=False) == [new[: new.index(end)]]
    stop = [GenerateRequest(prompt, 20, (str(new[8]),))]
    place = next(i for i in range(20) if cases.stopped(new[: i + 1], stop[0].stops))
    out = generate(model, alone, stop, [], 1000, stopped=cases.stopped, progress=False)
    assert out == [new[: place + 1]]
    wrong = [(token + 1) % tiny.VOCABULARY for token in text]
    monkeypatch.setattr(Lookup, "guess", lambda self, most: wrong[len(self._text) :][: min(most, 2)])
    passes.clear()
    assert generate(model, alone, of([prompt], 6), [], 1000, progress=False) == [new[:6]]
    assert len(passes) == 6


@pytest.mark.usefixtures("guessing_nothing")
def test_a_key_is_rotated_once(model, alone, monkeypatch):
    from megatron_ext.model import attention

    rotated, rotate = [], attention.rotate
    monkeypatch.setattr(attention, "rotate", lambda x, rotation: rotated.append(x.size(0)) or rotate(x, rotation))
    generate(model, alone, of([[5] * 7, [6] * 5], 4), [], 1000, progress=False)
    layers = model.config.num_layers
    # Queries and keys of the prompts, then of each token.
    assert rotated == [12] * (2 * layers) + [2] * (2 * layers * 3)


@pytest.mark.usefixtures("guessing_nothing")
def test_no_pass_follows_when_every_row_has_ended(model, alone, passes):
    (free,) = generate(model, alone, of([[5, 6, 7]], 9), [], 1000, progress=False)
    passes.clear()
    end = free[4]
    assert generate(model, alone, of([[5, 6, 7]], 9), [end], 1000, progress=False) == [free[: free.index(end)]]
    assert len(passes) == 1 + free.index(end)


@pytest.mark.usefixtures("guessing_nothing")
def test_rows_that_have_ended_cost_nothing_and_leave_the_cache(model, inference, alone, passes, monkeypatch):
    expected = inference[1][cases.MODELS[0]]
    pairs = [(p, new) for p, new in zip(cases.prompts(), expected["new"], strict=True) if len(p) < 20]
    prompts = [p for p, _ in pairs]
    cached, following = [], answering.Answering._following
    monkeypatch.setattr(
        answering.Answering,
        "_following",
        lambda self, rows, *rest: cached.append(len(rows)) or following(self, rows, *rest),
    )
    out = generate(model, alone, of(prompts, cases.NEW_TOKENS), expected["end_ids"], 10_000, progress=False)
    assert out == [new for _, new in pairs]
    alive = [sum(len(new) >= step for _, new in pairs) for step in range(1, len(passes))]
    assert passes[1:] == alive and passes[1] > passes[-1]
    assert all(answering.ALIVE * rows < here for rows, here in zip(cached, alive, strict=True))


@pytest.mark.usefixtures("guessing_nothing")
def test_logits_exist_for_the_last_position_only(model, alone, monkeypatch):
    shapes, logits = [], model.logits
    monkeypatch.setattr(model, "logits", lambda hidden: shapes.append(tuple(hidden.shape)) or logits(hidden))
    generate(model, alone, of([[5] * 7, [6] * 5], 3), [], 1000, progress=False)
    assert shapes == [(2, 64)] * 3


@pytest.mark.usefixtures("guessing_nothing")
def test_cache_positions_of_a_batch_stay_within_the_budget(model, alone, passes):
    generate(model, alone, of([[5 + i] * 6 for i in range(5)], 4), [], 20, progress=False)
    assert [tokens for tokens in passes if tokens >= 6] == [12, 12, 6]


@pytest.mark.usefixtures("guessing_nothing")
def test_a_prompt_that_waits_takes_the_place_of_an_answer_that_has_ended(model, alone, passes):
    """Two places, four answers of 9, 2, 4 and 3 tokens: nobody waits for the first one to end."""
    prompts, limits = [[5, 6, 7], [8, 9, 10, 11, 12, 13, 14, 15, 16, 17], [18, 19, 20], [21, 22]], [9, 2, 4, 3]
    requests = [GenerateRequest(*each, ()) for each in zip(prompts, limits, strict=True)]
    together = generate(model, alone, requests, [], 2 * 12, progress=False)
    # The first two prompts and a token each; the third prompt, three tokens each; the fourth, and what is left.
    assert passes == [3 + 10, 2, 3, 2, 2, 2, 2, 2, 2, 1, 1]
    apart = [generate(model, alone, [request], [], 1000, progress=False)[0] for request in requests]
    assert together == apart and [len(new) for new in together] == limits


@pytest.mark.parametrize("data", [1, 2])
def test_queues_are_of_one_size_and_every_replica_has_as_many(data):
    """Longest first, about ``FILLINGS`` times what the cache has room for."""
    ranks = SimpleNamespace(layout=Layout(data=data))
    lengths = [1 + i % 10 for i in range(180)]
    queues = generation._queues(lengths, 40, ranks)
    assert len(queues) == {1: 11, 2: 12}[data]
    assert {len(queue) for queue in queues} == {1: {16, 17}, 2: {15}}[data]
    order = [i for queue in queues for i in queue]
    assert sorted(order) == list(range(180)) and [lengths[i] for i in order] == sorted(lengths, reverse=True)
    assert generation._queues([7, 9], 1, ranks) == ([[1, 0]] if data == 1 else [[1], [0]])
    assert generation._queues([], 40, ranks) == []


def test_the_cache_is_freed_and_the_models_mode_restored(model, alone):
    model.train()
    generate(model, alone, of([[5, 6]], 3), [], 1000, progress=False)
    assert model.training
    gc.collect()
    assert not any(isinstance(thing, Cache) for thing in gc.get_objects())


def test_there_may_be_nothing_to_generate(model, alone):
    assert generate(model, alone, of([], 3), [], 10) == []


def test_progress_is_shown_when_asked_for(model, alone, capsys):
    generate(model, alone, of([[5]], 2), [], 10, progress=False)
    assert capsys.readouterr().err == ""
    generate(model, alone, of([[5]], 2), [], 10)
    assert "generating: 100%" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ([], r"prompt 1: no tokens"),
        ([5] * 65, r"prompt 1: 65 tokens, the model's context is 64"),
        ([tiny.VOCABULARY], r"prompt 1: token id 517 is not in the model's vocabulary of 517"),
    ],
)
def test_a_prompt_that_cannot_be_continued_is_named(prompt, message, model, alone):
    with pytest.raises(ValueError, match=message):
        generate(model, alone, of([[5], prompt], 3), [], 10)


@pytest.mark.usefixtures("guessing_nothing")
def test_a_stop_ends_its_own_row(model, alone, passes):
    prompts = [[5, 6, 7], [9, 4]]
    free = generate(model, alone, of(prompts, 9), [], 1000, progress=False)
    place = next(i for i, token in enumerate(free[0]) if i > 1 and token not in free[0][:i] and token not in free[1])
    requests = [GenerateRequest(prompts[0], 9, (str(free[0][place]),)), GenerateRequest(prompts[1], 4)]
    passes.clear()
    out = generate(model, alone, requests, [], 1000, stopped=cases.stopped, progress=False)
    assert out == [free[0][: place + 1], free[1][:4]]
    assert len(passes) == max(place + 1, 4)
    with pytest.raises(ValueError, match="prompt 0: has stops, but nothing tells where they appear"):
        generate(model, alone, requests, [], 1000)


def test_requests_that_differ_in_length_or_stops_are_different(model, alone, passes):
    requests = [GenerateRequest([5, 6], n, stops) for n, stops in ((3, ()), (5, ()), (5, ("x",)), (3, ()))]
    out = generate(model, alone, requests, [], 1000, stopped=cases.stopped, progress=False)
    assert [len(row) for row in out] == [3, 5, 5, 3]
    assert passes[0] == 2


def test_at_least_one_token_must_be_asked_for(model, alone):
    with pytest.raises(ValueError, match=r"prompt 0: max_new_tokens: 0; at least 1"):
        generate(model, alone, of([[5]], 0), [], 10)


def test_the_lowest_of_equal_logits_wins(alone):
    assert VocabularyShards(alone.tensor_group, 6).argmax(torch.tensor(cases.TIES)).tolist() == cases.TIES_ARGMAX
