import dataclasses

import pytest
import torch

from megatron_ext.checkpoint import reading
from megatron_ext.distributed.vocab_parallel import VocabularyShards
from megatron_ext.inference import pipeline_forward, scoring
from megatron_ext.inference.scoring import ScoreRequest, score
from megatron_ext.model.families import family_of
from tests.support import inference_cases as cases
from tests.support import tiny


@pytest.fixture(scope="module")
def model(inference, alone):
    return reading.load(inference[0] / cases.MODELS[0], alone)


@pytest.fixture
def logits_made(model, monkeypatch):
    """How many rows each call of ``model.logits`` was for."""
    rows, logits = [], model.logits
    monkeypatch.setattr(model, "logits", lambda hidden: rows.append(len(hidden)) or logits(hidden))
    return rows


@pytest.fixture
def read(model):
    """Tokens of each forward pass."""
    tokens = []
    handle = model.register_forward_pre_hook(lambda _, inputs: tokens.append(inputs[0].numel()))
    yield tokens
    handle.remove()


@pytest.mark.parametrize("name", cases.MODELS)
@pytest.mark.parametrize("token_budget", [1, 200, 100_000])
def test_scores_are_those_of_transformers_in_request_order(name, token_budget, inference, alone):
    folder, expected = inference
    requests = [ScoreRequest(*pair) for pair in cases.requests()]
    scores = score(reading.load(folder / name, alone), alone, requests, token_budget, progress=False)
    assert [s.log_prob for s in scores] == pytest.approx(expected[name]["log_probs"], rel=0, abs=1e-4)
    assert [s.tokens for s in scores] == [len(target) for _, target in cases.requests()]


@pytest.mark.parametrize("name", cases.MODELS)
def test_numbers_of_every_token_are_those_of_transformers(name, inference, alone):
    folder, expected = inference
    model = reading.load(folder / name, alone)
    requests = [ScoreRequest(*pair, tokenwise=i % 3 > 0) for i, pair in enumerate(cases.requests())]
    scores = score(model, alone, requests, 200, progress=False)
    assert [s.tokenwise is None for s in scores] == [not r.tokenwise for r in requests]
    for ours, theirs in zip(scores, expected[name]["tokenwise"], strict=True):
        assert ours.greedy == all(theirs[3])
        if ours.tokenwise:
            own = cases.as_lists(ours)
            assert own[3] == theirs[3]
            for numbers, wanted in zip(own[:3], theirs[:3], strict=True):
                assert numbers == pytest.approx(wanted, rel=0, abs=1e-4)
            assert sum(own[0]) == pytest.approx(ours.log_prob, abs=1e-5)


@pytest.mark.parametrize("tokenwise", [{2, 5}, set(range(8))])
def test_numbers_of_every_token_cost_nothing_where_nobody_asks_for_them(tokenwise, model, alone, monkeypatch):
    """Means and variances over the vocabulary are a third of a batch's logits' work."""
    rows, moments = [], VocabularyShards.log_prob_moments
    monkeypatch.setattr(
        VocabularyShards, "log_prob_moments", lambda s, logits: rows.append(len(logits)) or moments(s, logits)
    )
    requests = [ScoreRequest([5, 6, 7 + i], [8 + i, 9, 10][: 1 + i % 3], i in tokenwise) for i in range(8)]
    scores = score(model, alone, requests, 100_000, progress=False)
    assert sum(rows) == sum(len(r.target) for r in requests if r.tokenwise)
    every = score(model, alone, [dataclasses.replace(r, tokenwise=True) for r in requests], 100_000, progress=False)
    for ours, theirs in zip(scores, every, strict=True):
        assert ours.tokenwise is None or ours.tokenwise == theirs.tokenwise


def test_what_the_model_can_read_is_looked_up_once(model, alone, monkeypatch):
    """Not for each of thousands of requests."""
    asked = []
    monkeypatch.setattr(pipeline_forward, "family_of", lambda config: asked.append(1) or family_of(config))
    score(model, alone, [ScoreRequest([5, 6], [i]) for i in range(7, 20)], 100_000, progress=False)
    assert len(asked) == 1


def test_a_target_that_is_the_most_likely_one_is_greedy(model, alone):
    from megatron_ext.inference.generation import GenerateRequest, generate

    (new,) = generate(model, alone, [GenerateRequest([5, 6], 4)], [], 100, progress=False)
    likely, other = score(model, alone, [ScoreRequest([5, 6], new), ScoreRequest([5, 6], [*new[:3], 9])], 100)
    assert (likely.greedy, other.greedy) == (True, new[3] == 9)


def test_a_real_model_scores_its_check_sentence(alone, shared_data):
    folder = shared_data / "models" / "stories260K"
    if not folder.is_dir():
        pytest.skip(f"{folder} is absent")
    (result,) = score(reading.load(folder, alone), alone, [ScoreRequest(cases.STORY[:1], cases.STORY[1:])], 100)
    assert -result.log_prob / result.tokens == pytest.approx(0.100137, abs=1e-5)


def test_logits_exist_only_where_they_predict_a_target_token_of_a_distinct_request(model, alone, logits_made):
    requests = [ScoreRequest([5] * 30, [7, 8]), ScoreRequest([5] * 20, [9]), ScoreRequest([5] * 30, [7, 8])]
    first, _, third = score(model, alone, requests, 1000, progress=False)
    assert logits_made == [3]
    assert first == third


def test_a_token_that_targets_have_in_common_is_predicted_once(model, alone, logits_made):
    """Answers of one question that begin alike; numbers of every token go to each of those that ask for them."""
    answers = [[7, 8, 9], [7, 8, 10, 11], [7, 12], [7, 8]]
    requests = [ScoreRequest([5, 6, 5], answer, tokenwise=i % 2 == 1) for i, answer in enumerate(answers)]
    together = score(model, alone, requests, 1000, progress=False)
    assert logits_made == [len({tuple(answer[: end + 1]) for answer in answers for end in range(len(answer))})]
    for ours, request in zip(together, requests, strict=True):
        (apart,) = score(model, alone, [request], 1000, progress=False)
        assert ours.log_prob == pytest.approx(apart.log_prob, abs=1e-5) and ours.greedy == apart.greedy
        for name in ("log_probs", "means", "variances") if request.tokenwise else ():
            assert getattr(ours.tokenwise, name) == pytest.approx(getattr(apart.tokenwise, name), abs=1e-5)


def test_what_differs_in_its_last_token_alone_is_read_once(model, alone, read):
    requests = [ScoreRequest([5, 6, 7], [i], tokenwise=i == 9) for i in (8, 9, 10, 11)]
    requests += [ScoreRequest([9], [6, 7, 8]), ScoreRequest([9, 6], [7])]
    together = score(model, alone, requests, 1000, progress=False)
    assert read == [6]
    for ours, request in zip(together, requests, strict=True):
        (apart,) = score(model, alone, [request], 1000, progress=False)
        assert ours.log_prob == pytest.approx(apart.log_prob, abs=1e-5) and ours.greedy == apart.greedy
        assert (ours.tokenwise is None) == (not request.tokenwise)
    assert together[1].tokenwise.log_probs == pytest.approx([together[1].log_prob], abs=1e-6)


def test_four_choices_of_a_question_after_examples_read_question_and_examples_once(model, alone, read):
    """Five-shot questions cost a quarter of what reading every choice costs, and less where they share examples."""
    examples, asked = [7] * 30, 4
    questions = [[*examples, 10 + number, *[8] * 9] for number in range(asked)]
    requests = [ScoreRequest(question, [20 + choice, 30, 31]) for question in questions for choice in range(4)]
    score(model, alone, requests, 1000, progress=False)
    assert read == [30 + asked * (10 + 4 * 2)]
    assert sum(read) < sum(len(r.prompt) + len(r.target) - 1 for r in requests) / 4


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gemma2-tied", "mixtral-untied", "gptoss-untied", "deepseek-untied"])
def test_shared_beginnings_are_read_by_every_kind_of_attention(name, tmp_path, alone):
    """Capped products, windows, sinks, latent attention and experts: packed texts score as each text by itself."""
    tiny.write(tmp_path, [name])
    model = reading.load(tmp_path / "fp32" / name, alone)
    requests = [ScoreRequest(*pair, tokenwise=True) for pair in cases.requests()]
    found = score(model, alone, requests, 200, progress=False)
    for ours, request in zip(found, requests, strict=True):
        text = torch.tensor([[*request.prompt, *request.target[:-1]]])
        logits = tiny.logits(model, alone, text)[0, len(request.prompt) - 1 :]
        wanted = logits.log_softmax(-1).gather(-1, torch.tensor(request.target).unsqueeze(-1)).squeeze(-1)
        assert ours.tokenwise.log_probs == pytest.approx(wanted.tolist(), rel=0, abs=1e-4)


def test_logits_of_many_positions_are_made_in_pieces(model, alone, logits_made, monkeypatch):
    request = [ScoreRequest([5], list(range(10, 33)))]
    (whole,) = score(model, alone, request, 1000, progress=False)
    monkeypatch.setattr(scoring, "LOGITS", 8 * model.vocab_size)
    (pieces,) = score(model, alone, request, 1000, progress=False)
    assert logits_made == [23, 8, 8, 7]
    assert pieces.log_prob == pytest.approx(whole.log_prob, abs=1e-5)


def test_the_models_mode_is_restored(model, alone):
    model.train()
    score(model, alone, [ScoreRequest([5], [6])], 10, progress=False)
    assert model.training
    model.eval()
    score(model, alone, [ScoreRequest([5], [6])], 10, progress=False)
    assert not model.training


def test_a_model_can_be_trained_on_after_scoring(model, alone):
    score(model, alone, [ScoreRequest([5] * 10, [6] * 7)], 100, progress=False)
    ids = torch.full((1, 16), 5)
    model(ids, None, None).square().mean().backward()
    gradients = [parameter.grad for parameter in model.decoder.parameters()]
    model.zero_grad()
    assert all(gradient is not None and gradient.isfinite().all() for gradient in gradients)


def test_there_may_be_nothing_to_score(model, alone):
    assert score(model, alone, [], 10) == []


def test_progress_is_shown_when_asked_for(model, alone, capsys):
    score(model, alone, [ScoreRequest([5], [6])], 10, progress=False)
    assert capsys.readouterr().err == ""
    score(model, alone, [ScoreRequest([5], [6])], 10)
    assert "scoring: 100%" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("prompt", "target", "message"),
    [
        ([], [5], r"request 1: prompt: no tokens"),
        ([5], [], r"request 1: target: no tokens"),
        ([5] * 60, [6] * 6, r"request 1: 65 tokens, the model's context is 64"),
        ([5], [6, tiny.VOCABULARY], r"request 1: target: token id 517 is not in the model's vocabulary of 517"),
        ([-1], [6], r"request 1: prompt: token id -1 is not in"),
    ],
)
def test_a_request_that_cannot_be_scored_is_named(prompt, target, message, model, alone):
    with pytest.raises(ValueError, match=message):
        score(model, alone, [ScoreRequest([5], [6]), ScoreRequest(prompt, target)], 10)
