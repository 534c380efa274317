"""One optimizer step: batches in, gradients through Megatron's schedules, a direction, weights out."""

from __future__ import annotations

import math
import resource
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig
from megatron.core.distributed import finalize_model_grads as megatron_finalize
from megatron.core.optimizer import OptimizerConfig, get_megatron_optimizer
from megatron.core.pipeline_parallel import get_forward_backward_func
from torch import Tensor

from megatron_ext import cpu
from megatron_ext.batches import MicroBatch, Pool
from megatron_ext.gradients import GradientSpace
from megatron_ext.losses import Loss
from megatron_ext.model import LanguageModel
from megatron_ext.runtime import Ranks
from megatron_ext.scores import Scores
from megatron_ext.specs import Optimizer
from megatron_ext.updates import Direction, Products, Rule


class NonFinite(RuntimeError):
    """A loss or gradient is NaN or infinite; nothing was written to the weights."""


@dataclass(frozen=True)
class Term:
    """One loss over its rows of the global batch."""

    name: str
    loss: Loss
    pool: Pool
    rows: Sequence[int]

    @property
    def tokens(self) -> int:
        """Labelled tokens of the global batch."""
        return int(self.pool.label_counts[list(self.rows)].sum())

    @property
    def units(self) -> int:
        """What the mean is over: the global batch's labelled tokens or sequences."""
        return self.tokens if self.loss.unit == "token" else len(self.rows)


@dataclass(frozen=True)
class StepResult:
    """Global values of one optimizer step, equal on every rank and at every layout; None where not measured."""

    losses: dict[str, float]
    products: Products | None
    direction: Direction
    update_norm: float
    stop: bool


class Trainer:
    """A model wrapped in Megatron's DistributedDataParallel and optimizer, stepping along chosen directions.

    Gradients accumulate over micro-batches in fp32 and are reduced over data-parallel ranks (and tied embeddings over
    pipeline ends) before anything reads them. A loss is divided by the number of its units in the global batch, never
    averaged over micro-batches or ranks.
    """

    def __init__(self, model: LanguageModel, ranks: Ranks, spec: Optimizer, micro_batch: int) -> None:
        self.model, self.ranks, self.spec, self.micro_batch = model, ranks, spec, micro_batch
        config = model.config
        config.calculate_per_token_loss = True  # so that DDP sums over data-parallel ranks and divides by nothing
        config.finalize_model_grads_func = _finalize
        sharded = ranks.layout.distributed_optimizer
        with cpu.construction(ranks.on_cpu):
            self.ddp = DistributedDataParallel(
                config,
                DistributedDataParallelConfig(grad_reduce_in_fp32=True, use_distributed_optimizer=sharded),
                model,
            )
            self.optimizer = get_megatron_optimizer(
                OptimizerConfig(
                    optimizer="adam" if spec.name == "adamw" else "sgd",
                    lr=spec.learning_rate,
                    weight_decay=spec.weight_decay,
                    adam_beta1=spec.betas[0],
                    adam_beta2=spec.betas[1],
                    adam_eps=spec.epsilon,
                    sgd_momentum=0.0,
                    clip_grad=0.0,  # clipping happens on the direction, whose norm is known from the inner products
                    bf16=ranks.dtype == torch.bfloat16,
                    params_dtype=ranks.dtype,
                    use_distributed_optimizer=sharded,
                ),
                [self.ddp],
                use_gloo_process_groups=False,
            )
        for wrapper in self.optimizer.chained_optimizers:
            if isinstance(wrapper.optimizer, (torch.optim.Adam, torch.optim.AdamW, torch.optim.SGD)):
                for group in wrapper.optimizer.param_groups:
                    # torch's one-pass kernel: others loop over tensors in Python, or hold one more vector.
                    group["fused"] = True
        self.space = GradientSpace(self.ddp, ranks)
        self._run = get_forward_backward_func()
        self.stop_requested = False

    def step(self, terms: Sequence[Term], rule: Rule, rate: float, separate: bool) -> StepResult:
        """Take one optimizer step along ``rule``'s direction; collective over all ranks.

        ``terms``: the forget term, then the retain term if there is one. With ``separate``, or a rule that needs inner
        products, each term's gradient is kept apart; otherwise both go into one buffer. Raises ``NonFinite`` on every
        rank, before the weights change.
        """
        apart = separate or rule.needs_products
        if apart:
            sums = self._accumulate(terms[:1], [1.0])
            vectors = [self.space.held]
            if len(terms) == 2:
                vectors = [self.space.copy(), self.space.held]
                sums += self._accumulate(terms[1:], [1.0])
        else:
            known = rule.direction(Products.unknown())
            sums = self._accumulate(terms, [known.forget, known.retain][: len(terms)])
            vectors = [self.space.held]

        gram = self.space.products(vectors)
        stop = torch.tensor([float(self.stop_requested)], dtype=torch.float64, device=gram.device)
        mine = torch.cat([gram.flatten(), torch.stack(sums), stop])
        numbers = self.space.reduce(mine.clone())
        self._refuse_non_finite(numbers, mine)
        count = len(vectors)
        losses = {t.name: v / t.units for t, v in zip(terms, numbers[count * count : -1], strict=True)}

        products = None
        if apart:
            products = Products(
                ff=numbers[0],
                fr=numbers[1] if count == 2 else 0.0,
                rr=numbers[3] if count == 2 else 0.0,
                forget_loss=losses[terms[0].name],
                retain_loss=losses[terms[1].name] if count == 2 else None,
            )
            direction = rule.direction(products)
            norm = products.norm_of(direction)
        else:
            direction, norm = known, math.sqrt(max(0.0, numbers[0]))

        clip = 1.0 if self.spec.clip_norm is None else min(1.0, self.spec.clip_norm / max(norm, 1e-30))
        if not apart:
            self.space.combine(clip)
        elif count == 2:
            self.space.combine(direction.retain * clip, vectors[0], direction.forget * clip)
        else:
            self.space.combine(direction.forget * clip)
        del vectors
        for group in self.optimizer.param_groups:
            group["lr"] = rate
            group["weight_decay"] = self.spec.weight_decay * group["wd_mult"]
        # Its own step() would also compute the gradient's norm, with collectives of its own.
        self.optimizer.prepare_grads()
        self.optimizer.step_with_ready_grads()
        return StepResult(losses, products, direction, norm * clip, stop=numbers[-1] > 0)

    def _accumulate(self, terms: Sequence[Term], weights: Sequence[float]) -> list[Tensor]:
        """Leave the reduced gradient of ``sum_i weight_i * mean loss_i`` in the buffers.

        Returns each term's loss sum over this rank's micro-batches, fp64; zero on ranks that repeat another's.
        """
        self.ddp.zero_grad_buffer()
        self.optimizer.zero_grad()
        work = [
            (i, rows)
            for i, term in enumerate(terms)
            for rows in term.pool.micro_batches(
                term.rows, self.micro_batch, self.ranks.data_rank, self.ranks.layout.data
            )
        ]
        widest = max(int(t.pool.lengths[list(t.rows)].max()) for t in terms)
        totals = [torch.zeros((), dtype=torch.float64, device=self.ranks.device) for _ in terms]
        scales = [weight / term.units for weight, term in zip(weights, terms, strict=True)]

        def batches() -> Iterator[tuple[int, MicroBatch]]:
            for i, rows in work:
                yield i, terms[i].pool.collate(rows, self.ranks.device)

        def loss_of(i: int, batch: MicroBatch, hidden: Tensor) -> tuple[Tensor, Tensor, dict[str, Any]]:
            logits = self.model.logits(hidden.flatten(0, 1)[batch.index])
            value = terms[i].loss(Scores(logits, batch, self.ranks.tensor_group))
            if self.ranks.tensor_rank == 0:
                totals[i] += value.detach().double()
            return value * scales[i], torch.zeros((), dtype=torch.int), {}

        def forward(data: Iterator[tuple[int, MicroBatch]], model: torch.nn.Module) -> tuple[Tensor, Any]:
            i, batch = next(data)
            return model(batch.tokens, None, None), partial(loss_of, i, batch)

        self.ddp.train()
        self._run(
            forward_step_func=forward,
            data_iterator=batches(),
            model=self.ddp,
            num_microbatches=len(work),
            seq_length=widest,
            micro_batch_size=self.micro_batch,
            forward_only=False,
        )
        return totals

    def _refuse_non_finite(self, numbers: list[float], mine: Tensor) -> None:
        if all(map(math.isfinite, numbers)):
            return
        bad: list[Any] = [None] * self.ranks.world_size
        local = None if bool(mine.isfinite().all()) else str(self.ranks)
        if self.ranks.world_size > 1:
            torch.distributed.all_gather_object(bad, local)
        else:
            bad = [local]
        raise NonFinite(f"a loss or gradient is not finite (sums {numbers}), on {[b for b in bad if b]}")

    def refuse_broken_weights(self) -> None:
        """Raise ``NonFinite`` on every rank if any parameter is not finite: what the last step left was not checked."""
        bad = torch.stack([~p.detach().isfinite().all() for p in self.model.parameters()]).any().long()
        if self.ranks.world_size > 1:
            torch.distributed.all_reduce(bad)
        if bad:
            raise NonFinite("the weights are not finite after the last step; they were not written")

    def checksum(self) -> Tensor:
        """int64 ``[p]``: a number of each parameter's bits, to see whether the weights changed."""
        view = {torch.float32: torch.int32, torch.bfloat16: torch.int16}[self.ranks.dtype]
        return torch.stack([p.detach().view(view).sum(dtype=torch.int64) for p in self.model.parameters()])

    def peak_memory_bytes(self) -> int:
        """Most memory this rank has held: of the GPU's allocator, or resident memory of the process on CPU."""
        if not self.ranks.on_cpu:
            return torch.cuda.max_memory_allocated(self.ranks.device)
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _finalize(model: list[Any], num_tokens: Tensor | None = None, **kwargs: Any) -> None:
    """Megatron's reduction of gradients, without its division by a token count: losses are divided already."""
    megatron_finalize(model, None, **kwargs)
