"""Log-probabilities of given texts after given prompts, under tensor, pipeline and data parallelism."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from megatron_ext.distributed.process_groups import Ranks
    from megatron_ext.inference.response_cache import ResponseCache
    from megatron_ext.model.build import LanguageModel

# Logits held at a time, on each rank: 256 MiB in fp32.
LOGITS = 1 << 26
# A CPU is a third faster where what it works on fits its caches: numbers of logits, and of a pass's hidden states.
CPU_LOGITS = 1 << 22
CPU_HIDDEN = 1 << 20


@dataclass(frozen=True)
class ScoreRequest:
    """Token ids of a prompt, and of what follows it; neither is empty. ``tokenwise``: ``Score.tokenwise`` is wanted."""

    prompt: list[int]
    target: list[int]
    tokenwise: bool = False


@dataclass(frozen=True)
class Tokenwise:
    """Of each token of a target, in fp32 to nine digits: its log-probability; mean and variance of the log-probability
    of a token drawn from the model's distribution there; and whether it is the most likely token."""

    log_probs: list[float]
    means: list[float]
    variances: list[float]
    correct: list[bool]


@dataclass(frozen=True)
class Score:
    """``log_prob``: natural logarithm of the target's probability, summed over its ``tokens``; ``greedy``: whether each
    of them is the most likely one where it stands."""

    log_prob: float
    tokens: int
    greedy: bool
    tokenwise: Tokenwise | None = None


def score(
    model: LanguageModel,
    ranks: Ranks,
    requests: Sequence[ScoreRequest],
    token_budget: int,
    progress: bool = True,
    answers: ResponseCache | None = None,
) -> list[Score]:
    """``sum_t log p(target[t] | prompt, target[:t])`` of each request, in request order, on every rank.

    Log-probabilities are fp32, their sum fp64. Equal requests are computed once, and what differs in the last token
    alone, as the letters that answer a question, is read once. A forward pass takes at most ``token_budget`` tokens,
    padding included (but always one sequence), on a CPU fewer where their hidden states are large; logits exist only
    where they predict a target token. ``answers``: what is known already, which grows batch by batch. Every rank calls
    this with the same requests. Collectives: those of the forward passes, then a broadcast over the pipeline and an
    all-reduce over data-parallel ranks of two fp64 numbers a distinct request and of four fp32 numbers a token of
    tokenwise ones.

    Raises ``ValueError`` naming the request that is empty, longer than the model's context or outside its vocabulary.
    """
    import torch

    from megatron_ext.distributed.collectives import sum_over_data_ranks
    from megatron_ext.inference import pipeline_forward
    from megatron_ext.inference.response_cache import recall

    for i, request in enumerate(requests):
        for part in ("prompt", "target"):
            pipeline_forward.check_ids(model.hf_config, f"request {i}: {part}", getattr(request, part))
        pipeline_forward.check_ids(
            model.hf_config, f"request {i}", [*request.prompt, *request.target[:-1]]
        )  # what is read
    unique = pipeline_forward.deduplicate(requests, key=lambda r: (tuple(r.prompt), tuple(r.target), r.tokenwise))
    distinct = unique.items
    keys, found = recall(answers, "score", [(r.prompt, r.target, r.tokenwise) for r in distinct])
    left = [i for i, answer in enumerate(found) if answer is None]
    read: dict[tuple[int, ...], list[int]] = {}
    for i in left:
        read.setdefault((*distinct[i].prompt, *distinct[i].target[:-1]), []).append(i)
    texts = list(read)
    if ranks.on_cpu:
        token_budget = min(token_budget, max(1, CPU_HIDDEN // model.config.hidden_size))
    batches = [[texts[k] for k in batch] for batch in pipeline_forward.plan(list(map(len, texts)), token_budget, ranks)]

    sums = torch.zeros(2, len(distinct), dtype=torch.float64, device=ranks.device)
    places, total = {}, 0
    for i in left:
        if distinct[i].tokenwise:
            places[i] = slice(total, total + len(distinct[i].target))
            total += len(distinct[i].target)
    every = torch.zeros(4, total, device=ranks.device)
    stages = pipeline_forward.PipelineForward(model, ranks)
    with pipeline_forward.evaluating(model):
        for batch in pipeline_forward.rank_batches(batches, ranks, "scoring", progress):
            hidden = stages.forward(_inputs(batch).to(ranks.device))
            if hidden is None:
                continue
            asked = [(k, i) for k, text in enumerate(batch) for i in read[text]]
            indices = [i for _, i in asked]
            rows = [(k, distinct[i]) for k, i in asked]
            log_probs, wrong, numbers = _numbers(model, ranks, hidden, rows)
            sums[:, indices] = torch.stack([log_probs, wrong])
            for i, own in zip(indices, numbers, strict=True):
                if own is not None:
                    every[:, places[i]] = own
            if answers is not None:
                values = sums[:, indices].T.tolist()
                detail = [None if own is None else _digits(own) for own in numbers]
                answers.add([(keys[i], [*v, d]) for i, v, d in zip(indices, values, detail, strict=True)])
        stages.finish()
        for tensor in (sums, every):
            if tensor.numel():
                sum_over_data_ranks(stages.from_last(tensor), ranks)
    columns = sums.T.tolist()
    for i in left:
        found[i] = [*columns[i], _digits(every[:, places[i]]) if i in places else None]
    return [_score(found[place], request) for place, request in zip(unique.place_of, requests, strict=True)]


def _score(answer: list, request: ScoreRequest) -> Score:
    log_prob, wrong, detail = answer
    tokenwise = None if detail is None else Tokenwise(*detail[:3], correct=[value == 1 for value in detail[3]])
    return Score(log_prob, len(request.target), wrong == 0, tokenwise)


def _digits(numbers: Tensor) -> list[list[float]]:
    """fp32 numbers as decimal ones of nine digits, which are enough to tell them apart."""
    return [[float(f"{value:.9g}") for value in row] for row in numbers.tolist()]


def _inputs(texts: Sequence[tuple[int, ...]]) -> Tensor:
    """What is read: int64 ``[b, s]``, padded on the right, where causal attention looks not."""
    import torch

    return torch.nn.utils.rnn.pad_sequence([torch.tensor(ids) for ids in texts], batch_first=True)


def _numbers(
    model: LanguageModel, ranks: Ranks, hidden: Tensor, asked: list[tuple[int, ScoreRequest]]
) -> tuple[Tensor, Tensor, list[Tensor | None]]:
    """From hidden states ``[s, b, h]`` and ``n`` requests, each with its place among the ``b`` texts: log-probabilities
    and numbers of tokens that are not the most likely ones, fp64 ``[n]`` each; and of tokenwise ones fp32 ``[4, t]``.
    """
    import torch

    from megatron_ext.distributed.vocab_parallel import VocabularyShards

    device, rows = hidden.device, [row for _, row in asked]
    lengths = [len(row.target) for row in rows]
    counts = torch.tensor(lengths)
    row_of = torch.repeat_interleave(torch.arange(len(rows)), counts)
    position = torch.cat([len(row.prompt) - 1 + torch.arange(len(row.target)) for row in rows])
    text_of = torch.repeat_interleave(torch.tensor([k for k, _ in asked]), counts)
    places = (position * hidden.size(1) + text_of).to(device)
    targets = torch.tensor([token for row in rows for token in row.target], device=device)
    detailed = any(row.tokenwise for row in rows)
    flat = hidden.reshape(-1, hidden.size(-1))
    most = min(LOGITS, CPU_LOGITS) if ranks.on_cpu else LOGITS
    size = max(1, most * ranks.layout.tensor // model.vocab_size)
    shards = VocabularyShards(ranks.tensor_group, model.hf_config["vocab_size"])
    log_probs, correct, moments = [], [], []
    for some, wanted in zip(places.split(size), targets.split(size), strict=True):
        logits = model.logits(flat[some])
        log_probs.append(shards.target_log_probs(logits, wanted))
        correct.append(shards.argmax(logits) == wanted)
        if detailed:
            moments.append(torch.stack(shards.log_prob_moments(logits)))
    each, right = torch.cat(log_probs), torch.cat(correct)
    sums = torch.zeros(2, len(rows), dtype=torch.float64, device=device)
    sums.index_add_(1, row_of.to(device), torch.stack([each.double(), (~right).double()]))
    if not detailed:
        return sums[0], sums[1], [None] * len(rows)
    numbers = torch.cat([each.float().unsqueeze(0), torch.cat(moments, dim=1).float(), right.float().unsqueeze(0)])
    parts = numbers.split(lengths, dim=1)
    return sums[0], sums[1], [part if row.tokenwise else None for row, part in zip(rows, parts, strict=True)]
