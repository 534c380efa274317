"""Our NPO step against a plain transformers and torch loop with a resident reference model: the same weights and
sequences.

The loop is what a careful script looks like: right-padded micro-batches in the order of the data, an attention mask,
torch's fused attention and fused AdamW, gradients accumulated over micro-batches, logits of every position. Ours
differs by cached references, by logits at labelled positions only, and by micro-batches of sequences of similar length.
Both update their model; the losses of every step are compared.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from megatron_ext.data.sequences import Sequences
from megatron_ext.distributed import process_groups
from megatron_ext.losses.nll import NLL
from megatron_ext.losses.npo import NPO
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

BOUND = 1.0


class Loop:
    """NPO with NLL retain, written as a script would."""

    def __init__(self, model: Any, batches: Batches) -> None:
        import torch

        self.model, self.batches = model.train(), batches
        self.reference = copy.deepcopy(model).eval().requires_grad_(False)
        self.optimizer = torch.optim.AdamW(
            model.parameters(),
            lr=OPTIMIZER.learning_rate,
            betas=OPTIMIZER.betas,
            eps=OPTIMIZER.epsilon,
            weight_decay=0.0,
            fused=True,
        )

    def step(self, i: int) -> Losses:
        import torch
        from torch.nn.functional import softplus

        rows, beta = self.batches.rows(i), NPO().beta
        forget_loss = retain_loss = 0.0
        labels = int(self.batches.retain.label_counts[list(rows)].sum())
        for batch in _padded(self.batches.forget, rows):
            with torch.no_grad():
                reference = _log_probs(self.reference, *batch).sum(dim=1)
            rho = _log_probs(self.model, *batch).sum(dim=1) - reference
            loss = (2 / beta * softplus(beta * rho)).sum() / len(rows)
            loss.backward()
            forget_loss += loss.item()
        for batch in _padded(self.batches.retain, rows):
            loss = -_log_probs(self.model, *batch).sum() / labels
            loss.backward()
            retain_loss += loss.item()
        self.optimizer.step()
        self.optimizer.zero_grad()
        return [forget_loss, retain_loss]


def _padded(data: Sequences, rows: range) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Token ids, attention mask and labels, int64 ``[b, s]``, of each micro-batch; -100 where there is no label."""
    import torch
    from torch.nn.utils.rnn import pad_sequence

    for start in range(rows.start, rows.stop, MICRO_BATCH):
        ids, labels = [], []
        for row in range(start, min(start + MICRO_BATCH, rows.stop)):
            tokens, prompt = data.row(row)
            ids.append(torch.from_numpy(tokens).long())
            labels.append(torch.cat([torch.full((prompt,), -100), ids[-1][prompt:]]))
        mask = [torch.ones_like(tokens) for tokens in ids]
        yield pad_sequence(ids, True), pad_sequence(mask, True), pad_sequence(labels, True, -100)


def _log_probs(model: Any, ids: Tensor, mask: Tensor, labels: Tensor) -> Tensor:
    """``[b, s - 1]``: each label's log-probability, 0 where there is none."""
    from torch.nn.functional import cross_entropy

    logits = model(input_ids=ids, attention_mask=mask).logits[:, :-1]
    nll = cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100, reduction="none")
    return -nll.view(len(ids), -1)


def measure(given: Options) -> list[dict[str, Any]]:
    return [compare("transformers_loop", BOUND, given)]


def compare(name: str, bound: float, given: Options, packed: bool = False) -> dict[str, Any]:
    """The result of ours, with padded or with packed rows, beside the loop."""
    with process_groups.start(given.runtime) as ranks:
        from megatron_ext.training.trainer import Trainer

        model = build(given.model, ranks)
        batches = Batches(given).with_references(given, model, ranks)
        trainer = Trainer(model, ranks, OPTIMIZER, MICRO_BATCH)
        trainer.accumulator.packed = packed

        def ours(i: int) -> Losses:
            taken = trainer.step(batches.terms(i, NPO(), NLL()), WeightedSum(), OPTIMIZER.learning_rate)
            return list(taken.losses.values())

        loop = Loop(build_transformers(given.model), batches)
        seconds = in_turns({"ours": ours, "transformers": loop.step}, given)
    found = result(name, given, seconds, bound)
    found["notes"] = [f"{1 / found['ratio']:.2f} times as fast"]
    return found


if __name__ == "__main__":
    run(measure, __doc__)
