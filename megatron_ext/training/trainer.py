"""One optimizer step: batches in, gradients through Megatron's schedules, a direction, weights out."""

from __future__ import annotations

import math
import resource
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig
from megatron.core.distributed import finalize_model_grads as megatron_finalize
from megatron.core.optimizer import OptimizerConfig, get_megatron_optimizer
from megatron.core.pipeline_parallel import get_forward_backward_func
from torch import Tensor

from megatron_ext.config import Optimizer
from megatron_ext.data.collate import MicroBatch, SequenceDataset
from megatron_ext.distributed import cpu
from megatron_ext.distributed.collectives import over_data_ranks
from megatron_ext.distributed.process_groups import Ranks
from megatron_ext.distributed.vocab_parallel import VocabularyShards
from megatron_ext.losses import Loss
from megatron_ext.model.build import LanguageModel
from megatron_ext.model.loss_inputs import LossInputs
from megatron_ext.training.gradients import GradientSpace
from megatron_ext.training.reference_model import ReferenceModel
from megatron_ext.training.step import Step, StepPosition
from megatron_ext.updates import Rule, State


class NonFinite(RuntimeError):
    """A loss or gradient is NaN or infinite; nothing was written to the weights."""


@dataclass(frozen=True)
class LossTerm:
    """One loss over its rows of the global batch; ``preferred_rows``: the row of each row's alternative answer."""

    name: str
    loss: Loss
    pool: SequenceDataset
    rows: Sequence[int]
    preferred_rows: Mapping[int, int] | None = None
    topic: str = ""

    @property
    def units(self) -> int:
        """What the mean is over: units of the global batch. Raises ``ValueError`` where there are none."""
        rows = list(self.rows)
        labels = self.pool.label_counts[rows]
        found = self.loss.units(labels, self.pool.lengths[rows])
        if found < 1:
            raise ValueError(
                f"{self.name}: {self.loss.name!r} has nothing to average over in a batch of {len(rows)} sequences with "
                f"at most {labels.max(initial=0)} labelled tokens each"
            )
        return found

    @property
    def widest(self) -> int:
        """Tokens of the longest sequence."""
        return int(self.pool.lengths[[*self.rows, *(self.preferred_rows or {}).values()]].max())

    def micro_batches(self, size: int, ranks: Ranks) -> list[list[int]]:
        """This data-parallel rank's rows, micro-batch by micro-batch; alternatives follow the rows they belong to."""
        batches = self.pool.micro_batches(self.rows, size, ranks.data_rank, ranks.layout.data)
        if self.preferred_rows is None:
            return batches
        return [[*rows, *(self.preferred_rows.get(row, -1) for row in rows)] for rows in batches]


class Trainer:
    """A model wrapped in Megatron's DistributedDataParallel and optimizer, stepping along chosen directions.

    Gradients accumulate over micro-batches in fp32 and are reduced over data-parallel ranks (and tied embeddings over
    pipeline ends) before anything reads them. A loss is divided by the number of its units in the global batch, never
    averaged over micro-batches or ranks.
    """

    def __init__(
        self,
        model: LanguageModel,
        ranks: Ranks,
        spec: Optimizer,
        micro_batch: int,
        reference_model: ReferenceModel | None = None,
    ) -> None:
        self.model, self.ranks, self.spec, self.micro_batch = model, ranks, spec, micro_batch
        self.reference_model = reference_model
        self.vocabulary = VocabularyShards(ranks.tensor_group, model.hf_config["vocab_size"])
        self.length_multiple = ranks.layout.tensor if model.config.sequence_parallel else 1
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

    def step(
        self,
        terms: Sequence[LossTerm],
        rule: Rule,
        rate: float,
        separate: bool = False,
        state: State | None = None,
        place: StepPosition = StepPosition(),  # noqa: B008
        whole_retain: Callable[[], LossTerm] | None = None,
    ) -> Step:
        """Take one optimizer step along ``rule``'s direction; collective over all ranks.

        ``terms``: the forget term, then the retain term if there is one. With ``separate``, or a rule that needs inner
        products, each term's gradient is kept apart; otherwise both go into one buffer. ``state`` is the rule's own,
        changed in place. Raises ``NonFinite`` on every rank, before the weights change.
        """
        step = Step(self, terms, rate, separate, {} if state is None else state, place, whole_retain)
        rule.update(step)
        if not math.isfinite(step.update_norm):
            raise NonFinite(f"the direction of rule {rule.name!r} is not finite (norm {step.update_norm})")
        for group in self.optimizer.param_groups:
            group["lr"] = step.rate
            group["weight_decay"] = self.spec.weight_decay * group["wd_mult"]
        # Its own step() would also compute the gradient's norm, with collectives of its own.
        self.optimizer.prepare_grads()
        self.optimizer.step_with_ready_grads()
        rule.after(step)
        return step

    def accumulate(
        self, terms: Sequence[LossTerm], weights: Sequence[float], adapt: Callable[[float], float] | None = None
    ) -> tuple[list[Tensor], float]:
        """Leave the reduced gradient of ``sum_i weight_i * mean loss_i`` in the buffers.

        Returns each term's loss sum over this rank's micro-batches, fp64, zero on ranks that repeat another's; and the
        last term's weight after ``adapt`` (see ``Step.descend``), zero on all ranks but one.
        """
        self.ddp.zero_grad_buffer()
        self.optimizer.zero_grad()
        return self._pass(terms, weights, adapt, forward_only=False)

    def mean_loss(self, term: LossTerm) -> float:
        """The mean loss of ``term`` over its rows, without gradients; one all-reduce."""
        with torch.no_grad():
            (total,), _ = self._pass([term], [1.0], None, forward_only=True)
        mine = total.reshape(1)
        numbers = self.space.reduce(mine.clone())
        self.refuse_non_finite(numbers, mine, [term.name], 0)
        return numbers[0] / term.units

    def _pass(
        self,
        terms: Sequence[LossTerm],
        weights: Sequence[float],
        adapt: Callable[[float], float] | None,
        forward_only: bool,
    ) -> tuple[list[Tensor], float]:
        ranks, model = self.ranks, self.model
        work = [(i, rows) for i, term in enumerate(terms) for rows in term.micro_batches(self.micro_batch, ranks)]
        totals = [torch.zeros((), dtype=torch.float64, device=ranks.device) for _ in terms]
        scales = [weight / term.units for weight, term in zip(weights, terms, strict=True)]
        last, final = len(terms) - 1, [weights[-1]]

        def batch_of(i: int, rows: list[int]) -> MicroBatch:
            return terms[i].pool.collate(rows, ranks.device, terms[i].loss.where, self.length_multiple)

        reference_model: list[Tensor | None] = [None] * len(work)
        needing = [k for k, (i, _) in enumerate(work) if terms[i].loss.needs_reference_model]
        if needing:
            if self.reference_model is None:
                raise ValueError("a loss needs the model before unlearning, and the trainer has none")
            for k, hidden in zip(
                needing, self.reference_model.hidden([batch_of(*work[k]) for k in needing]), strict=True
            ):
                reference_model[k] = hidden

        def batches() -> Iterator[tuple[int, int, MicroBatch]]:
            for k, (i, rows) in enumerate(work):
                yield k, i, batch_of(i, rows)

        def loss_of(k: int, i: int, batch: MicroBatch, hidden: Tensor) -> tuple[Tensor, Tensor, dict[str, Any]]:
            term = terms[i]
            scores = LossInputs(
                model.at(hidden, batch.index),
                batch,
                model,
                self.vocabulary,
                term.topic,
                reference_model[k],
                self.reference_model.model if self.reference_model is not None else None,
            )
            value = term.loss(scores)
            reference_model[k] = None
            if ranks.tensor_rank == 0:
                totals[i] += value.detach().double()
            weighted = value * scales[i]
            if adapt is not None and i == last:
                rows = [row for row in work[k][1] if row >= 0]
                units = term.loss.units(term.pool.label_counts[rows], term.pool.lengths[rows])
                pair = torch.stack([value.detach().double(), value.new_tensor(units, dtype=torch.float64)])
                over_data_ranks(pair, ranks)
                final[0] = adapt(float(pair[0] / pair[1].clamp(min=1)))
                scales[i] = final[0] / term.units
            return weighted, torch.zeros((), dtype=torch.int), {}

        def forward(data: Iterator[tuple[int, int, MicroBatch]], ddp: torch.nn.Module) -> tuple[Tensor, Any]:
            k, i, batch = next(data)
            return ddp(batch.tokens, None, None), partial(loss_of, k, i, batch)

        self.ddp.train()
        self._run(
            forward_step_func=forward,
            data_iterator=batches(),
            model=self.ddp,
            num_microbatches=len(work),
            seq_length=max(term.widest for term in terms),
            micro_batch_size=self.micro_batch,
            forward_only=forward_only,
        )
        counted = ranks.is_last_stage and ranks.tensor_rank == 0 and ranks.data_rank == 0
        return totals, final[0] if counted else 0.0

    def refuse_non_finite(self, numbers: list[float], mine: Tensor, losses: Sequence[str], first: int) -> None:
        """Raise ``NonFinite`` on every rank where one of ``numbers``, sums of every rank's ``mine``, is not finite;
        from place ``first`` on they are the sums of these ``losses``."""
        if all(map(math.isfinite, numbers)):
            return
        wrong = [f"{name} is {numbers[first + i]}" for i, name in enumerate(losses)]
        wrong = [text for i, text in enumerate(wrong) if not math.isfinite(numbers[first + i])]
        if wrong:  # and gradients with it, on every rank that they are reduced to
            mine = mine[first : first + len(losses)]
        bad: list[Any] = [None] * self.ranks.world_size
        local = None if bool(mine.isfinite().all()) else str(self.ranks)
        if self.ranks.world_size > 1:
            torch.distributed.all_gather_object(bad, local)
        else:
            bad = [local]
        what = ", ".join(wrong) or "a gradient is not finite"
        raise NonFinite(f"{what}; first seen on {', '.join(b for b in bad if b) or 'no single rank'}")

    def refuse_broken_weights(self) -> None:
        """Raise ``NonFinite`` on every rank if any parameter is not finite: what the last step left was not checked."""
        bad = torch.stack([~p.detach().isfinite().all() for p in self.model.parameters()]).any().long()
        if self.ranks.world_size > 1:
            torch.distributed.all_reduce(bad)
        if bad:
            raise NonFinite("the weights are not finite after this step; they were not written")

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
