"""Requests and prompts of the inference tests, what transformers makes of them, and what a rank of a layout does."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.support import tiny

MODELS = ("llama3-tied", "qwen3-untied", "gemma3-tied")
NEW_TOKENS = 16
TOKEN_BUDGET = 200
NEAR_TIE = 1e-3
STORY = [1, 403, 407, 261, 378, 432, 383, 286, 261, 376, 298, 315, 421, 395, 317, 426]


def requests() -> list[tuple[list[int], list[int]]]:
    """Prompts and targets of many lengths, from one token to the whole context, one of them twice; and several answers
    of questions that follow the same tokens, one of which begins as another does."""
    draw = random.Random(0)
    pairs = [(_ids(draw, draw.randint(1, 20)), _ids(draw, draw.randint(1, 20))) for _ in range(20)]
    pairs += [(_ids(draw, 1), _ids(draw, 63)), (_ids(draw, 63), _ids(draw, 1)), pairs[3]]
    for start in (_ids(draw, 15), pairs[0][0]):
        for question in (start, start + _ids(draw, 6)):
            answers = [_ids(draw, length) for length in (1, 7, 12)]
            pairs += [(question, answer) for answer in (*answers, answers[1] + _ids(draw, 3))]
    return pairs


def prompts() -> list[list[int]]:
    """Prompts of many lengths; the last ones reach, or all but reach, the end of the context of 64."""
    draw = random.Random(1)
    return [_ids(draw, length) for length in (*(1 + i % 14 for i in range(18)), 55, 60, 63, 64)]


def sampled() -> list[Any]:
    """Requests that sample in every way, among greedy ones."""
    from megatron_ext.inference.generation import GenerateRequest, samples
    from megatron_ext.inference.sampling import Sampling

    ways = [Sampling(1.0), Sampling(0.8, top_p=0.9), Sampling(1.3, top_k=20, seed=5), Sampling(0.7, 0.8, 30, 1), None]
    asked = [GenerateRequest(prompt, 6, sampling=ways[i % 5]) for i, prompt in enumerate(prompts()[:20])]
    return [*asked, *samples(asked[0], 3)]


def _ids(draw: random.Random, length: int) -> list[int]:
    return [draw.randrange(3, tiny.VOCABULARY) for _ in range(length)]


def log_probs(model: Any, pairs: list[tuple[list[int], list[int]]]) -> list[float]:
    """Of a transformers model, one sequence at a time."""
    import torch

    sums = []
    with torch.no_grad():
        for prompt, target in pairs:
            every = model(torch.tensor([prompt + target])).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
            sums.append(float(every.gather(-1, torch.tensor(target).unsqueeze(-1)).double().sum()))
    return sums


def tokenwise(model: Any, pairs: list[tuple[list[int], list[int]]]) -> list[list[list[float]]]:
    """Of a transformers model, for each pair: log-probability, mean, variance and correctness of each target token."""
    import torch

    found = []
    with torch.no_grad():
        for prompt, target in pairs:
            every = model(torch.tensor([prompt + target])).logits[0, len(prompt) - 1 : -1].log_softmax(-1).double()
            mean = (every.exp() * every).sum(-1)
            variance = (every.exp() * every**2).sum(-1) - mean**2
            wanted = torch.tensor(target)
            own = every.gather(-1, wanted.unsqueeze(-1)).squeeze(-1)
            right = every.argmax(-1) == wanted
            found.append(torch.stack([own, mean, variance, right.double()]).tolist())
    return found


def as_lists(score: Any) -> list[list[float]]:
    """What ``tokenwise`` gives, of a score of ours."""
    t = score.tokenwise
    return [t.log_probs, t.means, t.variances, [float(c) for c in t.correct]]


def stopped(ids: list[int], stops: tuple[str, ...]) -> bool:
    """A stand-in for a tokenizer, under which an id is its decimal digits."""
    text = " ".join(map(str, ids))
    return any(stop in text for stop in stops)


def greedy(model: Any, prompts: list[list[int]]) -> tuple[list[list[int]], float]:
    """``generate(do_sample=False)`` of a transformers model, one prompt at a time, which nothing ends; and the least
    difference that there was between the largest and the second largest logit."""
    import torch

    gap, rows = float("inf"), []
    for prompt in prompts:
        room = min(NEW_TOKENS, model.config.max_position_embeddings - len(prompt))
        if room == 0:
            rows.append([])
            continue
        out = model.generate(
            torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.int64),
            do_sample=False,
            max_new_tokens=room,
            eos_token_id=None,
            pad_token_id=0,
            return_dict_in_generate=True,
            output_scores=True,
        )
        for scores in out.scores:
            best = scores[0].topk(2).values
            gap = min(gap, float(best[0] - best[1]))
        rows.append(out.sequences[0, len(prompt) :].tolist())
    return rows, gap


def write(folder: Path, names: Sequence[str] = MODELS) -> dict[str, Any]:
    """Models in ``folder/<name>``; by model, what is expected: ``log_probs``, ``end_ids`` and ``new``."""
    expected: dict[str, Any] = {}
    for name in names:
        model = tiny.make(name)
        model.save_pretrained(folder / name)
        free, gap = greedy(model, prompts())
        # End tokens that end most rows, at different lengths, and leave some whole.
        end_ids = sorted({row[length] for length, row in zip((0, 2, 3, 5, 5, 7, 9, 11), free, strict=False)})
        # Greedy tokens up to an end token do not depend on it.
        ends = [[i for i, token in enumerate(row) if token in end_ids][:1] for row in free]
        new = [row[: end[0]] if end else row for row, end in zip(free, ends, strict=True)]
        assert gap > NEAR_TIE, "the greedy choice is a matter of rounding: choose other prompts"
        assert len({len(row) for row in new}) > 5 and any(len(row) == NEW_TOKENS for row in new)
        expected[name] = {"log_probs": log_probs(model, requests()), "end_ids": end_ids, "new": new}
        expected[name]["tokenwise"] = tokenwise(model, requests())
    return expected


def at_layouts(
    folder: Path, layouts: list[dict[str, int]], end_ids: dict[str, list[int]], stories: Path | None
) -> list[dict[str, Any]]:
    """What a rank computes at each layout: by model ``log_probs`` and ``new``; ``argmax`` of split logits."""
    return [_at_layout(folder, layout, end_ids, stories) for layout in layouts]


def _at_layout(
    folder: Path, layout: dict[str, int], end_ids: dict[str, list[int]], stories: Path | None
) -> dict[str, Any]:
    import torch

    from megatron_ext.checkpoint import reading
    from megatron_ext.config import Runtime
    from megatron_ext.distributed import process_groups
    from megatron_ext.distributed.vocab_parallel import VocabularyShards
    from megatron_ext.inference.generation import GenerateRequest, generate
    from megatron_ext.inference.response_cache import ResponseCache
    from megatron_ext.inference.scoring import ScoreRequest, score

    spec = Runtime.model_validate({"layout": layout, "device": "cpu", "timeout_seconds": 60})
    results: dict[str, Any] = {"layout": layout}
    with process_groups.start(spec) as ranks:
        for name in end_ids:
            model = reading.load(folder / name, ranks)
            # One folder for the ranks of this layout: the second time everything is read from it.
            answers = folder / "-".join(["answers", name, *(f"{k}{n}" for k, n in layout.items())])
            for again in ("", "_again"):
                known = ResponseCache(answers, {"model": name}, ranks)
                every = [ScoreRequest(*pair, tokenwise=i % 2 == 0) for i, pair in enumerate(requests())]
                scores = score(model, ranks, every, TOKEN_BUDGET, answers=known)
                prompts_ = [GenerateRequest(prompt, NEW_TOKENS) for prompt in prompts()]
                new = generate(model, ranks, prompts_, end_ids[name], TOKEN_BUDGET, answers=known)
                drawn = generate(model, ranks, sampled(), end_ids[name], TOKEN_BUDGET, answers=known)
                results[name + again] = {
                    "drawn": drawn,
                    "log_probs": [s.log_prob for s in scores],
                    "tokenwise": [as_lists(s) for s in scores[::2]],
                    "new": new,
                    "known": len(known),
                }
        if stories is not None:
            model = reading.load(stories, ranks)
            results["stories"] = score(model, ranks, [ScoreRequest(STORY[:1], STORY[1:])], TOKEN_BUDGET)[0].log_prob
        width = 6 // ranks.layout.tensor
        mine = torch.tensor(TIES)[:, ranks.tensor_rank * width :][:, :width]
        results["argmax"] = VocabularyShards(ranks.tensor_group, 6).argmax(mine).tolist()
    return results


INF = float("-inf")
TIES = [[0.0, 1, 1, 1, 1, 0], [0, 0, 0, 0, 2, 2], [-1, -3, INF, INF, INF, INF], [INF, INF, INF, INF, -5, -4]]
TIES_ARGMAX = [1, 4, 0, 5]
