"""An RMU step at layer 1 of 12 that builds two layers against one that runs the full model, as RMU's own code does.

RMU's code runs the model (on forget and retain batches) and a frozen copy (on retain batches) to the logits, and takes
one layer's hidden states by a hook. Here that is transformers' Llama; unlike in RMU's code, only the matrices that are
trained require a gradient, so that backward passes are as short as ours. Batches, padding, losses and optimizer are the
same; the losses of every step are compared.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

from megatron_ext.config import TrainableLayers
from megatron_ext.data.collate import SequenceDataset
from megatron_ext.distributed import process_groups
from megatron_ext.losses.rmu import RMU, direction
from megatron_ext.losses.rmu_retain import RMURetain
from megatron_ext.updates.weighted_sum import WeightedSum
from perf.common import (
    MICRO_BATCH,
    OPTIMIZER,
    Batches,
    Losses,
    Options,
    build,
    build_transformers,
    in_turns,
    result,
    run,
)

if TYPE_CHECKING:
    from torch import Tensor

    from megatron_ext.data.collate import MicroBatch

BOUND = 0.35
TRAINABLE = TrainableLayers(up_to=1, layers_to_transform=[0, 1], target_modules=["down_proj"])
FORGET, RETAIN = RMU(steering=6.5), RMURetain(weight=100.0)


class Full:
    """RMU over a whole model, by a hook."""

    def __init__(self, model: Any, batches: Batches) -> None:
        import torch

        self.model, self.batches = model.requires_grad_(False), batches
        self.reference_model = copy.deepcopy(model).eval()
        trained = [model.model.layers[i].mlp.down_proj.weight for i in TRAINABLE.trained_layers]
        for weight in trained:
            weight.requires_grad_(True)
        self.optimizer = torch.optim.AdamW(
            trained,
            lr=OPTIMIZER.learning_rate,
            betas=OPTIMIZER.betas,
            eps=OPTIMIZER.epsilon,
            weight_decay=0.0,
            fused=True,
        )

    def step(self, i: int) -> Losses:
        rows = self.batches.rows(i)
        vector = FORGET.steering * direction(FORGET.seed, "", self.model.config.hidden_size)
        found = []
        for dataset, weight in ((self.batches.forget_dataset, 1.0), (self.batches.retain_dataset, RETAIN.weight)):
            total, tokens = 0.0, int(dataset.lengths[list(rows)].sum())
            for batch in _micro_batches(dataset, rows):
                if dataset is self.batches.forget_dataset:
                    wanted = vector
                else:
                    wanted = self._hidden(self.reference_model, batch).detach()
                squares = (self._hidden(self.model, batch) - wanted).square().mean(dim=-1)
                loss = weight * squares.sum() / tokens
                loss.backward()
                total += loss.item()
            found.append(total)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return found

    def _hidden(self, model: Any, batch: MicroBatch) -> Tensor:
        """``[n, h]``: the hidden states that leave the layer, of every token."""
        kept: list[Tensor] = []
        hook = model.model.layers[TRAINABLE.up_to].register_forward_hook(lambda _, __, hidden: kept.append(hidden))
        model(input_ids=batch.tokens)
        hook.remove()
        return kept[0].transpose(0, 1).flatten(0, 1)[batch.index]


def _micro_batches(dataset: SequenceDataset, rows: range) -> list[MicroBatch]:
    import torch

    dealt = dataset.micro_batches(rows, MICRO_BATCH, data_rank=0, data_size=1)
    return [dataset.collate(some, torch.device("cpu"), positions="all") for some in dealt]


def measure(given: Options) -> list[dict[str, Any]]:
    with process_groups.start(given.runtime) as ranks:
        from megatron_ext.training.reference_model import ReferenceMatrices
        from megatron_ext.training.trainer import Trainer

        batches = Batches(given)
        model = build(given.model, ranks, TRAINABLE)
        trainer = Trainer(model, ranks, OPTIMIZER, MICRO_BATCH, ReferenceMatrices(model, ranks))

        def ours(i: int) -> Losses:
            taken = trainer.step(batches.terms(i, FORGET, RETAIN), WeightedSum(), OPTIMIZER.learning_rate)
            return list(taken.losses.values())

        full = Full(build_transformers(given.model), batches)
        seconds = in_turns({"two layers": ours, "full model": full.step}, given)
    return [result("rmu", given, seconds, BOUND)]


if __name__ == "__main__":
    run(measure, __doc__)
