"""Norms of gradients, against transformers and autograd."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.support import tiny
from tests.support.distributed import run_ranks

MODELS = ("llama3-tied", "llama3-untied", "qwen3-untied")
LAYOUTS = {2: [{"tensor": 2}, {"pipeline": 2}, {"data": 2}], 4: [{"tensor": 2, "pipeline": 2}]}
PAIRS = [([1, 5, 6], [9, 8, 7, 30]), ([1], [3]), ([1, 9, 500], [516, 4]), ([1, 5, 6], [9, 8, 7, 30]), ([7], [7] * 20)]


def autograd(model: Any, pairs: list[tuple[list[int], list[int]]]) -> list[float]:
    """Of a transformers model: the mean over its parameters of the norm of the gradient of each pair's mean loss."""
    import torch

    found = []
    for prompt, target in pairs:
        model.zero_grad()
        labels = torch.tensor([[-100] * len(prompt) + target])
        model(torch.tensor([prompt + target]), labels=labels).loss.backward()
        found.append(float(torch.stack([p.grad.double().norm() for p in model.parameters()]).mean()))
    return found


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, list[float]]]:
    """A folder of models, and what transformers makes of ``PAIRS`` with each."""
    folder, expected = tmp_path_factory.mktemp("models"), {}
    for name in MODELS:
        model = tiny.make(name)
        model.save_pretrained(folder / name)
        expected[name] = autograd(model, PAIRS)
    return folder, expected


def norms(ranks: Any, folder: Path, **options: Any) -> list[float]:
    from megatron_ext.checkpoint import reading
    from megatron_ext.inference.gradient_norms import gradient_norms
    from megatron_ext.inference.scoring import ScoreRequest

    model = reading.load(folder, ranks)
    return gradient_norms(model, ranks, [ScoreRequest(*pair) for pair in PAIRS], progress=False, **options)


def at_layouts(folder: Path, layouts: list[dict[str, int]]) -> list[dict[str, list[float]]]:
    """What a rank gets at each layout, by model; of one model again from kept answers."""
    from megatron_ext.config import Runtime
    from megatron_ext.distributed import process_groups
    from megatron_ext.inference.response_cache import ResponseCache

    found = []
    for layout in layouts:
        with process_groups.start(Runtime.model_validate({"layout": layout, "device": "cpu"})) as ranks:
            results = {name: norms(ranks, folder / name) for name in MODELS}
            kept = folder / "-".join(["answers", *layout])
            for again in ("first", "again"):
                answers = ResponseCache(kept, {}, ranks)
                results[again] = norms(ranks, folder / MODELS[0], answers=answers)
                results[f"{again} known"] = [float(len(answers))]
            found.append(results)
    return found


@pytest.mark.parametrize("name", MODELS)
def test_norms_are_those_of_autograd(name: str, models: Any, alone: Any) -> None:
    folder, expected = models
    assert norms(alone, folder / name) == pytest.approx(expected[name], rel=1e-4)


@pytest.mark.slow
@pytest.mark.timeout(120)
@pytest.mark.parametrize("count", LAYOUTS)
def test_every_layout_gives_the_norms_of_autograd(count: int, models: Any) -> None:
    folder, expected = models
    for rank in run_ranks(at_layouts, count, folder, LAYOUTS[count]):
        for results in rank:
            for name in MODELS:
                assert results[name] == pytest.approx(expected[name], rel=1e-4)
            assert (results["first known"], results["again known"]) == ([0.0], [len(PAIRS) - 1.0])
            assert results["again"] == results["first"] == pytest.approx(expected[MODELS[0]], rel=1e-4)


def test_the_model_is_left_as_it_was(models: Any, alone: Any) -> None:
    import torch

    from megatron_ext.checkpoint import reading
    from megatron_ext.inference.gradient_norms import gradient_norms
    from megatron_ext.inference.scoring import ScoreRequest, score

    model = reading.load(models[0] / MODELS[0], alone)
    requests = [ScoreRequest(*pair) for pair in PAIRS]
    before = score(model, alone, requests, 100, progress=False)  # what inference leaves behind does not matter
    model.eval()
    got = gradient_norms(model, alone, requests, progress=False)
    assert got == pytest.approx(models[1][MODELS[0]], rel=1e-4)
    assert not model.training and all(parameter.grad is None for parameter in model.parameters())
    assert score(model, alone, requests, 100, progress=False) == before
    model(torch.full((1, 4), 5), None, None).square().mean().backward()
    assert all(parameter.grad is not None for parameter in model.decoder.parameters())  # no hook is left


def test_no_more_than_one_gradient_is_held(models: Any, alone: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from megatron_ext.checkpoint import reading
    from megatron_ext.inference import gradient_norms as module
    from megatron_ext.inference.scoring import ScoreRequest

    held, take = [], module._Gradients._take

    def counting(self: Any, parameter: Any) -> None:
        held.append(sum(p.grad is not None for p in self.places))
        take(self, parameter)

    monkeypatch.setattr(module._Gradients, "_take", counting)
    model = reading.load(models[0] / MODELS[0], alone)
    module.gradient_norms(model, alone, [ScoreRequest(*PAIRS[0])], progress=False)
    assert held == [1] * len(list(model.parameters()))


def test_there_may_be_nothing_to_ask(models: Any, alone: Any) -> None:
    from megatron_ext.checkpoint import reading
    from megatron_ext.inference.gradient_norms import gradient_norms

    assert gradient_norms(reading.load(models[0] / MODELS[0], alone), alone, []) == []


@pytest.mark.parametrize(
    ("prompt", "target", "message"),
    [
        ([5], [], r"request 1: target: no tokens"),
        ([5] * 60, [6] * 5, r"request 1: 65 tokens, the model's context is 64"),
        ([5], [tiny.VOCABULARY], r"request 1: target: token id 517 is not in the model's vocabulary of 517"),
    ],
)
def test_a_request_that_cannot_be_asked_is_named(
    prompt: Any, target: Any, message: str, models: Any, alone: Any
) -> None:
    from megatron_ext.checkpoint import reading
    from megatron_ext.inference.gradient_norms import gradient_norms
    from megatron_ext.inference.scoring import ScoreRequest

    model = reading.load(models[0] / MODELS[0], alone)
    with pytest.raises(ValueError, match=message):
        gradient_norms(model, alone, [ScoreRequest([5], [6]), ScoreRequest(prompt, target)])


def test_a_gradient_that_is_not_finite_is_named(models: Any, alone: Any) -> None:
    import torch

    from megatron_ext.checkpoint import reading
    from megatron_ext.inference.gradient_norms import gradient_norms
    from megatron_ext.inference.scoring import ScoreRequest

    model = reading.load(models[0] / MODELS[0], alone)
    with torch.no_grad():
        model.decoder.final_layernorm.weight[0] = torch.inf
    with pytest.raises(ValueError, match="request 0: the gradient's norm is nan"):
        gradient_norms(model, alone, [ScoreRequest([5], [6])], progress=False)
