"""How steep the loss of given texts is in the weights, under tensor, pipeline and data parallelism."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor

from megatron_ext.checkpoint import mapping, splits
from megatron_ext.distributed.collectives import sum_over_data_ranks
from megatron_ext.distributed.process_groups import Ranks
from megatron_ext.distributed.vocab_parallel import VocabularyShards
from megatron_ext.inference import pipeline_forward
from megatron_ext.inference.response_cache import recall
from megatron_ext.inference.scoring import ScoreRequest
from megatron_ext.model.build import LanguageModel
from megatron_ext.model.families import family_of

if TYPE_CHECKING:
    from megatron_ext.inference.response_cache import ResponseCache

# Replicated over tensor-parallel ranks, each of which sees only its own heads' part of the gradient.
_OF_HEADS = ("q_layernorm.weight", "k_layernorm.weight")


def gradient_norms(
    model: LanguageModel,
    ranks: Ranks,
    requests: Sequence[ScoreRequest],
    progress: bool = True,
    answers: ResponseCache | None = None,
) -> list[float]:
    """The mean, over the model's parameter tensors, of the 2-norm of a text's gradient.

    The gradient is that of the target's mean negative log-likelihood given the prompt: open-unlearning's GradNorm
    (``src/evals/metrics/mia/gradnorm.py``, p = 2), whose target has no end token. The tensors are those of the Hugging
    Face checkpoint, a tied embedding counted once, so that the number depends neither on how Megatron joins matrices
    nor on the layout. Squares are summed in fp64; the gradients have the dtype of the weights, and of them at most one
    parameter's is held at a time, but for embeddings tied over a pipeline.

    One sequence a forward and backward pass; data-parallel ranks each take their share of the distinct requests. Every
    rank calls this with the same requests. Collectives: those of the passes; of every request one fp64 number a tensor
    over the tensor-parallel ranks and the pipeline; at the end one fp64 number a distinct request over data-parallel
    ranks.

    Args:
        model: Built without ``training``. Its mode and its weights are left as they are; gradients that it holds are
            dropped.
        ranks: Where this process stands.
        requests: Prompts and targets.
        progress: Whether the first rank shows a progress bar.
        answers: What is known already; it grows as this goes on.

    Returns:
        A number for each request, in their order, on every rank.

    Raises:
        ValueError: Naming the request, for one that is empty, longer than the model's context, outside its vocabulary,
            or whose gradient is not finite.
    """
    _check(model, requests)
    unique = pipeline_forward.deduplicate(requests, key=lambda r: (tuple(r.prompt), tuple(r.target)))
    distinct = unique.items
    order = sorted(range(len(distinct)), key=lambda i: (-len(distinct[i].prompt) - len(distinct[i].target), i))
    # As many at a time as there are stages, so that no stage waits for all the others.
    size = ranks.layout.pipeline
    batches = [order[start : start + size] for start in range(0, len(order), size)]
    recalled = recall(answers, "gradient-norm", [(r.prompt, r.target) for r in distinct], batches)
    found = dict(recalled.known)

    norms = torch.zeros(len(distinct), dtype=torch.float64, device=ranks.device)
    with _Gradients(model, ranks).taken() as norms_of:
        for batch in pipeline_forward.rank_batches(recalled.left, ranks, "gradients", progress):
            norms[batch] = norms_of([distinct[i] for i in batch])
            if answers is not None:
                answers.add([(recalled.keys[i], value) for i, value in zip(batch, norms[batch].tolist(), strict=True)])
    if recalled.left:
        values = sum_over_data_ranks(norms, ranks).tolist()
        found |= {i: values[i] for batch in recalled.left for i in batch}
    for i, place in enumerate(unique.place_of):
        if not 0 <= found[place] < float("inf"):
            raise ValueError(f"request {i}: the gradient's norm is {found[place]}")
    return [found[place] for place in unique.place_of]


def _check(model: LanguageModel, requests: Sequence[ScoreRequest]) -> None:
    readable = pipeline_forward.Readable(model.hf_config)
    for i, request in enumerate(requests):
        readable.check(f"request {i}: prompt", request.prompt)
        readable.check(f"request {i}: target", request.target)
        readable.check(f"request {i}", [*request.prompt, *request.target])


class _Gradients:
    """Forward and backward passes of single sequences, and the squares of what they leave in the parameters."""

    def __init__(self, model: LanguageModel, ranks: Ranks) -> None:
        self.model, self.ranks = model, ranks
        self.vocabulary = VocabularyShards(ranks.tensor_group, model.hf_config["vocab_size"])
        columns = {name: i for i, name in enumerate(mapping.tensor_shapes(model.hf_config))}
        self.squares = torch.zeros(len(columns), dtype=torch.float64, device=ranks.device)
        # Of each parameter the tensors that this rank counts: their column and their place in the parameter.
        self.places: dict[Tensor, list[tuple[int, Callable[[Tensor], Tensor]]]] = {}
        self.later: list[Tensor] = []  # gradients that are complete only after others' are added
        self.embedding: Tensor | None = None  # that of the first stage where the last one has a copy, or this copy
        parameters = dict(model.named_parameters())
        pipeline_tied = ranks.layout.pipeline > 1 and family_of(model.hf_config).is_tied(model.hf_config)
        for entry in mapping.entries(model.hf_config, ranks.layout, ranks.pipeline_rank):
            parameter = entry.find(parameters)
            counted = entry.stored and (entry.kind is not splits.replicated or ranks.tensor_rank == 0)
            parts = entry.parts(ranks.tensor_rank, ranks.layout.tensor) if counted else []
            self.places[parameter] = [(columns[part.name], part.place) for part in parts]
            if pipeline_tied and mapping.EMBEDDING in entry.shapes:
                self.embedding = parameter
                self.later.append(parameter)
            elif ranks.layout.tensor > 1 and any(name.endswith(_OF_HEADS) for name in entry.names):
                self.later.append(parameter)

    @contextmanager
    def taken(self) -> Iterator[Callable[[list[ScoreRequest]], Tensor]]:
        """Yields a function from requests to their norms, fp64 ``[n]`` on every rank of this copy of the model."""
        model, training = self.model, self.model.training
        model.train()  # what is built here has no dropout: this only chooses the code that keeps what backward needs
        model.zero_grad(set_to_none=True)
        later = set(self.later)
        hooks = [p.register_post_accumulate_grad_hook(self._take) for p in self.places if p not in later]
        try:
            yield self._norms
        finally:
            for hook in hooks:
                hook.remove()
            model.set_input_tensor(None)
            model.zero_grad(set_to_none=True)
            model.train(training)

    def _norms(self, requests: list[ScoreRequest]) -> Tensor:
        ranks = self.ranks
        passes = [self._forward(request) for request in requests]
        rows = []
        for received, result, sent in passes:
            if sent is not None:
                sent[0].wait()
            self.squares.zero_()
            self._backward(received, result)
            self._complete()
            rows.append(self.squares.clone())
        squares = torch.stack(rows)
        for group in (ranks.tensor_group, ranks.pipeline_group):
            if group.size() > 1:
                dist.all_reduce(squares, group=group)
        return squares.sqrt().mean(dim=-1)

    def _forward(self, request: ScoreRequest) -> tuple[Tensor | None, Tensor, tuple[Any, Tensor] | None]:
        """What this stage received; what it makes of it, on the last stage the loss; and the send under way, with what
        it reads from."""
        ranks, model = self.ranks, self.model
        ids = torch.tensor([[*request.prompt, *request.target[:-1]]], device=ranks.device)
        received = None
        if not ranks.is_first_stage:
            shape = (ids.size(1), 1, model.config.hidden_size)
            received = torch.empty(shape, dtype=ranks.dtype, device=ranks.device)
            dist.recv(received, group=ranks.pipeline_group, group_src=ranks.pipeline_rank - 1)
            model.set_input_tensor(received.requires_grad_())
        hidden = model(ids, None, None)
        if not ranks.is_last_stage:
            out = hidden.detach().contiguous()
            work = dist.isend(out, group=ranks.pipeline_group, group_dst=ranks.pipeline_rank + 1)
            return received, hidden, (work, out)
        logits = model.logits(hidden.flatten(0, 1)[len(request.prompt) - 1 :])
        targets = torch.tensor(request.target, device=ranks.device)
        return received, -self.vocabulary.target_log_probs(logits, targets).mean(), None

    def _backward(self, received: Tensor | None, result: Tensor) -> None:
        ranks = self.ranks
        slope = None
        if not ranks.is_last_stage:
            slope = torch.empty(result.shape, dtype=ranks.dtype, device=ranks.device)
            dist.recv(slope, group=ranks.pipeline_group, group_src=ranks.pipeline_rank + 1)
        torch.autograd.backward(result, slope)
        if received is not None:
            assert received.grad is not None
            dist.send(received.grad.contiguous(), group=ranks.pipeline_group, group_dst=ranks.pipeline_rank - 1)

    @torch.no_grad()
    def _complete(self) -> None:
        """Take the gradients that need other ranks' parts."""
        for parameter in self.later:
            gradient = parameter.grad
            assert gradient is not None
            if parameter is not self.embedding:
                dist.all_reduce(gradient, group=self.ranks.tensor_group)
            elif self.ranks.is_first_stage:
                other = torch.empty_like(gradient)
                dist.recv(other, group=self.ranks.pipeline_group, group_src=self.ranks.layout.pipeline - 1)
                gradient.add_(other)
            else:
                dist.send(gradient.contiguous(), group=self.ranks.pipeline_group, group_dst=0)
            self._take(parameter)

    @torch.no_grad()
    def _take(self, parameter: Tensor) -> None:
        """Add the squares of a parameter's gradient to those of its tensors, and let go of it."""
        gradient = parameter.grad
        assert gradient is not None
        for column, place in self.places[parameter]:
            self.squares[column] += torch.linalg.vector_norm(place(gradient.contiguous()), dtype=torch.float64).square()
        parameter.grad = None
