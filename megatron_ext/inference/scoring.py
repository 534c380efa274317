"""Log-probabilities of given texts after given prompts, under tensor, pipeline and data parallelism."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

    from megatron_ext.distributed.process_groups import Ranks
    from megatron_ext.inference.response_cache import ResponseCache
    from megatron_ext.model.build import LanguageModel

# Logits held at a time, on each rank: 256 MiB in fp32.
LOGITS = 1 << 26
# A CPU is a third faster where what it works on fits its caches: numbers of logits, and of a pass's hidden states.
CPU_LOGITS = 1 << 22
CPU_EXPONENTIALS = 1 << 19  # of those logits at a time, a quarter faster than of all
CPU_HIDDEN = 1 << 20


@dataclass(frozen=True)
class ScoreRequest:
    """Token ids to score; neither list is empty.

    Attributes:
        prompt: What comes before.
        target: What is scored.
        tokenwise: Whether ``Score.tokenwise`` is wanted.
    """

    prompt: list[int]
    target: list[int]
    tokenwise: bool = False


@dataclass(frozen=True)
class Tokenwise:
    """Numbers of each token of a target, in fp32 to nine digits.

    Attributes:
        log_probs: The token's log-probability.
        means: Mean of the log-probability of a token drawn from the model's distribution there.
        variances: Its variance.
        correct: Whether the token is the most likely one.
    """

    log_probs: list[float]
    means: list[float]
    variances: list[float]
    correct: list[bool]


@dataclass(frozen=True)
class Score:
    """The answer to a request.

    Attributes:
        log_prob: Natural logarithm of the target's probability.
        tokens: Tokens of the target.
        greedy: Whether each of them is the most likely one where it stands.
        tokenwise: Numbers of each token, where they were asked for.
    """

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
    """``sum_t log p(target[t] | prompt, target[:t])`` of each request.

    Log-probabilities are fp32, their sum fp64. Equal requests are computed once. What texts begin with alike, as
    answers of one question do and questions after the same examples, is read once in each batch. There is no padding.
    Logits exist only where they predict a target token.

    Every rank calls this with the same requests. Collectives: those of the forward passes, then a broadcast over the
    pipeline and an all-reduce over data-parallel ranks, of two fp64 numbers for each distinct request and of four fp32
    numbers for each token of tokenwise ones.

    Args:
        model: This rank's stage of the model.
        ranks: Where this process stands.
        requests: What to score.
        token_budget: Tokens of a forward pass, but always one sequence; on a CPU fewer where their hidden states are
            large. Attention is computed for as many at a time, those that are shared counted for each text.
        progress: Whether the first rank shows a progress bar.
        answers: What is known already; it grows batch by batch.

    Returns:
        The scores in the order of the requests, on every rank.

    Raises:
        ValueError: Naming the request, for one that is empty, longer than the model's context or outside its
            vocabulary.
    """
    from megatron_ext.inference import pipeline_forward
    from megatron_ext.inference.response_cache import recall
    from megatron_ext.inference.shared_prefixes import plan

    readable = pipeline_forward.Readable(model.hf_config)
    for i, request in enumerate(requests):
        readable.check(f"request {i}: prompt", request.prompt)
        readable.check(f"request {i}: target", request.target)
        readable.check(f"request {i}", [*request.prompt, *request.target[:-1]])
    unique = pipeline_forward.deduplicate(requests, key=lambda r: (tuple(r.prompt), tuple(r.target), r.tokenwise))
    answered: dict[tuple[int, ...], list[int]] = {}  # texts, and the requests that are answered by reading them
    for i, request in enumerate(unique.items):
        answered.setdefault(_text(request), []).append(i)
    if ranks.on_cpu:
        token_budget = min(token_budget, max(1, CPU_HIDDEN // model.config.hidden_size))
    batches = [[i for text in batch for i in answered[text]] for batch in plan(list(answered), token_budget, ranks)]
    parts = [(request.prompt, request.target, request.tokenwise) for request in unique.items]
    recalled = recall(answers, "score", parts, batches)
    scoring = _Scoring(model, ranks, unique.items, recalled.left)

    def keep(rows: dict[int, list[Any]]) -> None:
        if answers is not None:
            answers.add([(recalled.keys[i], row) for i, row in rows.items()])

    rows = recalled.known | scoring.run(token_budget, progress, keep)
    return [_score(rows[place], request) for place, request in zip(unique.place_of, requests, strict=True)]


def _text(request: ScoreRequest) -> tuple[int, ...]:
    """What is read to score a request."""
    return (*request.prompt, *request.target[:-1])


class _Scoring:
    """Scores the requests of ``batches``, which hold their numbers; requests are told by their number throughout.

    Those of a batch that are answered by reading the same text follow one another in it. A row is what the response
    cache holds of a request: its log-probability, how many of its tokens are not the most likely ones, and of tokenwise
    ones four lists of numbers, else None.
    """

    def __init__(
        self, model: LanguageModel, ranks: Ranks, requests: Sequence[ScoreRequest], batches: list[list[int]]
    ) -> None:
        import torch

        self._model, self._ranks, self._requests, self._batches = model, ranks, requests, batches
        self._sums_2R = torch.zeros(2, len(requests), dtype=torch.float64, device=ranks.device)
        self._slices: dict[int, slice] = {}  # of tokenwise requests, in the tokens of all of them
        tokens = 0
        for i in self._numbers():
            if requests[i].tokenwise:
                self._slices[i] = slice(tokens, tokens + len(requests[i].target))
                tokens += len(requests[i].target)
        self._tokenwise = torch.zeros(4, tokens, device=ranks.device)

    def run(
        self, key_budget: int, progress: bool, keep: Callable[[dict[int, list[Any]]], None]
    ) -> dict[int, list[Any]]:
        """Every request's row; ``keep`` is given this rank's, batch by batch."""
        from megatron_ext.distributed.collectives import sum_over_data_ranks
        from megatron_ext.inference import pipeline_forward, shared_prefixes

        model, ranks = self._model, self._ranks
        stages = pipeline_forward.PipelineForward(model, ranks)
        with pipeline_forward.evaluating(model):
            for batch in pipeline_forward.rank_batches(self._batches, ranks, "scoring", progress):
                texts = list(dict.fromkeys(_text(self._requests[i]) for i in batch))
                ids, packing, stretches = shared_prefixes.packed(texts, key_budget, ranks.device)
                hidden_S1H = stages.forward(ids, packing)
                if hidden_S1H is not None:
                    paths = {text: stretch.path for text, stretch in zip(texts, stretches, strict=True)}
                    asked = [_Asked(paths[_text(self._requests[i])], i, self._requests[i]) for i in batch]
                    self._note(_numbers(model, ranks, hidden_S1H.squeeze(1), asked), asked)
                    keep(self._rows(batch))
            stages.finish()
            for tensor in (self._sums_2R, self._tokenwise):
                if tensor.numel():
                    sum_over_data_ranks(stages.from_last(tensor), ranks)
        return self._rows(self._numbers())

    def _numbers(self) -> list[int]:
        return [i for batch in self._batches for i in batch]

    def _note(self, answers: _Answers, asked: Sequence[_Asked]) -> None:
        self._sums_2R[:, [each.number for each in asked]] = answers.sums_2R
        for each, values in zip(asked, answers.tokenwise, strict=True):
            if values is not None:
                self._tokenwise[:, self._slices[each.number]] = values

    def _rows(self, numbers: Sequence[int]) -> dict[int, list[Any]]:
        columns = self._sums_2R[:, list(numbers)].T.tolist()
        details = [_digits(self._tokenwise[:, self._slices[i]]) if i in self._slices else None for i in numbers]
        return {i: [*column, detail] for i, column, detail in zip(numbers, columns, details, strict=True)}


@dataclass(frozen=True)
class _Asked:
    """A request, its number, and where the tokens of the text that answers it are in a batch's row."""

    path: Sequence[int]
    number: int
    request: ScoreRequest

    def predictions(self) -> Iterator[tuple[int, int]]:
        """Of each token of the target the place of the one before it, and its id."""
        return zip(self.path[len(self.request.prompt) - 1 :], self.request.target, strict=True)


@dataclass(frozen=True)
class _Answers:
    """What a batch's hidden states say of ``R`` requests.

    Attributes:
        sums_2R: fp64: log-probabilities, and numbers of tokens that are not the most likely ones.
        tokenwise: Of each request fp32 ``[4, tokens]`` where that was asked for: log-probabilities, means, variances,
            and 1 for tokens that are the most likely ones.
    """

    sums_2R: Tensor
    tokenwise: list[Tensor | None]


def _score(row: list[Any], request: ScoreRequest) -> Score:
    log_prob, wrong, detail = row
    tokenwise = None
    if detail is not None:
        log_probs, means, variances, correct = detail
        tokenwise = Tokenwise(log_probs, means, variances, [value == 1 for value in correct])
    return Score(log_prob, len(request.target), wrong == 0, tokenwise)


def _digits(numbers: Tensor) -> list[list[float]]:
    """fp32 numbers as decimal ones of nine digits, which are enough to tell them apart."""
    return [[float(f"{value:.9g}") for value in row] for row in numbers.tolist()]


def _numbers(model: LanguageModel, ranks: Ranks, hidden_TH: Tensor, asked: Sequence[_Asked]) -> _Answers:
    """Log-probabilities of every target's tokens, ``N`` in all, from the hidden states of a batch.

    Of what texts begin with alike, their targets have tokens in common too, ``U`` distinct ones at their places.
    """
    import torch

    from megatron_ext.distributed.vocab_parallel import VocabularyShards

    device, requests = hidden_TH.device, [each.request for each in asked]
    lengths = [len(request.target) for request in requests]
    distinct: dict[tuple[int, int], int] = {}  # of a place in the row and a token after it: which of them
    which_N = torch.tensor([distinct.setdefault(pair, len(distinct)) for each in asked for pair in each.predictions()])
    of_N = torch.repeat_interleave(torch.arange(len(requests)), torch.tensor(lengths))
    place_U, target_U = torch.tensor(list(distinct), device=device).unbind(-1)
    tokenwise_N = torch.tensor([request.tokenwise for request in requests])[of_N]
    tokenwise_U = torch.zeros(len(distinct), dtype=torch.bool).index_fill_(0, which_N[tokenwise_N], True)  # on the CPU
    shards = VocabularyShards(ranks.tensor_group, model.hf_config["vocab_size"])
    detail_4U = torch.zeros(4, len(distinct), device=device)
    size = rows = positions_at_a_time(model, ranks)
    if ranks.on_cpu and ranks.layout.tensor == 1:  # else each piece would be reduced over ranks
        rows = max(1, CPU_EXPONENTIALS // model.vocab_size)
    parts = (each.split(size, dim=-1) for each in (place_U, target_U, tokenwise_U, detail_4U))
    for places, targets, detailed, detail in zip(*parts, strict=True):
        logits_UV = model.logits(hidden_TH.index_select(0, places))
        pieces = zip(logits_UV.split(rows), targets.split(rows), strict=True)
        detail[0] = torch.cat([shards.target_log_probs(*piece) for piece in pieces])
        detail[3] = shards.argmax(logits_UV) == targets
        if detailed.any():
            own = detailed.to(device)
            moments = shards.log_prob_moments(logits_UV if detailed.all() else logits_UV[own])
            detail[1:3, own] = torch.stack(moments).float()
    detail_4N = detail_4U[:, which_N.to(device)]
    sums_2R = torch.zeros(2, len(requests), dtype=torch.float64, device=device)
    sums_2R.index_add_(1, of_N.to(device), torch.stack([detail_4N[0], 1 - detail_4N[3]]).double())
    split = zip(requests, detail_4N.split(lengths, dim=1), strict=True)
    return _Answers(sums_2R, [part if request.tokenwise else None for request, part in split])


def positions_at_a_time(model: LanguageModel, ranks: Ranks) -> int:
    """Of how many positions logits exist at the same time."""
    most = min(LOGITS, CPU_LOGITS) if ranks.on_cpu else LOGITS
    return max(1, most * ranks.layout.tensor // model.vocab_size)
