"""The model before unlearning stays what it was while another is trained, wherever its weights are kept."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, Literal

import pytest

from megatron_ext.config import Layout, Optimizer, Runtime
from megatron_ext.data.collate import SequenceDataset
from megatron_ext.losses import Loss
from megatron_ext.losses.ga import GA
from megatron_ext.updates.weighted_sum import WeightedSum
from tests.support import tiny
from tests.support.distributed import run_ranks
from tests.support.worlds import sequences

MODELS = ["llama3-tied", "qwen3-untied"]
DATA = sequences(12, 5)
ROWS = [0, 2, 3, 7, 11]
STEPS = 4
LAYOUTS: dict[str, dict[str, Any]] = {
    "one": {},
    "tp2": {"tensor": 2, "sequence_parallel": True},
    "pp2": {"pipeline": 2},
    "dp2": {"data": 2, "distributed_optimizer": True},
}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models, and in ``<name>-rows.pt`` transformers' logits of every row of ``DATA``, by its tokens."""
    import torch
    from transformers import AutoModelForCausalLM

    folder = tmp_path_factory.mktemp("models")
    tiny.write(folder, MODELS)
    for name in MODELS:
        model = AutoModelForCausalLM.from_pretrained(folder / "fp32" / name)
        with torch.no_grad():
            rows = [torch.from_numpy(DATA.row(row)[0].astype("int64")) for row in range(len(DATA))]
            torch.save({tuple(ids.tolist()): model(ids[None]).logits[0] for ids in rows}, folder / f"{name}-rows.pt")
    return folder


class Watched(Loss):
    """The squared distance to the frozen logits, of which it keeps the largest difference to ``expected``."""

    name: Literal["watched"] = "watched"
    unit: ClassVar[Literal["token"]] = "token"
    needs_reference_model: ClassVar[bool] = True
    expected: ClassVar[dict[tuple[int, ...], Any]] = {}
    seen: ClassVar[list[tuple[float, float]]] = []

    def __call__(self, inputs: Any) -> Any:
        import torch

        reference_model = inputs.reference_logits
        width, rank = reference_model.size(-1), inputs.vocabulary.group.rank()
        wanted = []
        for row, tokens in enumerate(inputs.batch.tokens):
            table = next((t for ids, t in self.expected.items() if list(ids) == tokens[: len(ids)].tolist()), None)
            where = inputs.batch.index[inputs.batch.sequence == row] // len(inputs.batch.tokens)
            if len(where):
                assert table is not None
                wanted.append(table[where])
        if not wanted:  # a micro-batch that only fills up
            return inputs.logits.sum() * 0
        columns = torch.cat(wanted)[:, rank * width : (rank + 1) * width]
        own = slice(columns.size(-1))
        moved = inputs.logits[:, own] - reference_model[:, own]
        self.seen.append((float((reference_model[:, own] - columns).abs().max()), float(moved.detach().abs().max())))
        assert not reference_model.requires_grad
        return moved.square().sum()


def differences(folder: Path, name: str, layout: dict[str, Any], offload: bool) -> list[tuple[float, float]]:
    """By micro-batch: the frozen logits' largest difference to transformers', and the trained ones' to them."""
    import torch

    from megatron_ext.distributed import process_groups

    with process_groups.start(Runtime(device="cpu", layout=Layout(**layout))) as ranks:
        return watch(torch.load(folder / f"{name}-rows.pt"), folder / "fp32" / name, ranks, offload)


def watch(expected: Any, checkpoint: Path, ranks: Any, offload: bool) -> list[tuple[float, float]]:
    from megatron_ext.checkpoint import reading
    from megatron_ext.training.loss_terms import LossTerm
    from megatron_ext.training.reference_model import ReferenceCopy
    from megatron_ext.training.trainer import Trainer

    Watched.expected, Watched.seen = expected, []
    model = reading.load(checkpoint, ranks, training=Runtime(layout=ranks.layout))
    before = reading.load(checkpoint, ranks)
    reference_model = ReferenceCopy(before, ranks, offload)
    trainer = Trainer(model, ranks, Optimizer(learning_rate=0.01), 2, reference_model)
    dataset = SequenceDataset([DATA])
    for _ in range(STEPS):
        terms = [LossTerm("forget_loss", GA(), dataset, ROWS), LossTerm("retain_loss", Watched(), dataset, ROWS)]
        trainer.step(terms, WeightedSum(), rate=0.01)
    assert not any(p.requires_grad for p in before.parameters())
    return Watched.seen


def runs(folder: Path, layout: dict[str, Any]) -> dict[tuple[str, bool], list[tuple[float, float]]]:
    found = {}
    for name, offload in CASES:
        found[name, offload] = differences(folder, name, layout, offload)
    return found


CASES = list(zip(MODELS, (True, False), strict=True))  # both places of the weights, at every layout


@pytest.mark.slow
@pytest.mark.parametrize("layout", LAYOUTS)
def test_frozen_logits_stay_those_of_the_checkpoint(models: Path, layout: str) -> None:
    spec = Layout(**LAYOUTS[layout])
    ranks = run_ranks(runs, spec.ranks, models, LAYOUTS[layout])
    for case in CASES:
        seen = [pair for rank in ranks for pair in rank[case]]
        assert len(seen) == STEPS * 3 * spec.tensor
        assert max(difference for difference, _ in seen) < 3e-5, case
        assert max(moved for _, moved in seen) > 0.1, "the trained model moves away"


@pytest.mark.parametrize("name", MODELS)
def test_offloaded_weights_are_on_the_device_only_while_their_module_runs(alone: Any, models: Path, name: str) -> None:
    """On the CPU, by the same hooks: between modules a parameter is empty, and what would use it there fails."""
    import torch

    from megatron_ext.checkpoint import reading
    from megatron_ext.training.reference_model import ReferenceCopy

    dataset = SequenceDataset([DATA])
    batches = [dataset.collate(rows, alone.device) for rows in ([0, 3], [7, 5])]
    model = reading.load(models / "fp32" / name, alone)
    before = [p.detach().clone() for p in model.parameters()]
    sizes = {id(module): sum(p.numel() for p in module.parameters(recurse=False)) for module in model.modules()}
    embedding = model.embedding.word_embeddings.weight.numel()
    plain = ReferenceCopy(reading.load(models / "fp32" / name, alone), alone, offload=False)
    reference_model = ReferenceCopy(model, alone, offload=True)
    held: list[tuple[int, int]] = []

    def note(module: Any, *_: Any) -> None:
        on_device = sum(p.numel() for p in model.parameters())
        held.append((on_device, embedding if module is model.output_layer else sizes[id(module)]))

    def watch_forward(module: Any) -> Callable[..., Any]:
        forward = module.forward

        def watched(*args: Any, **kwargs: Any) -> Any:
            note(module)
            return forward(*args, **kwargs)

        return watched

    for module in model.modules():
        if sizes[id(module)] or module is model.output_layer:
            module.forward = watch_forward(module)
    for given, wanted in zip(reference_model.hidden(batches), plain.hidden(batches), strict=True):
        assert given is not None and wanted is not None
        assert given.equal(wanted)
        with torch.no_grad():
            assert reference_model.logits(given).equal(plain.logits(wanted))
    assert len(held) > 20
    assert all(on_device == own for on_device, own in held)
    assert [p.numel() for p in model.parameters()] == [0] * len(before)
    with pytest.raises((RuntimeError, IndexError)):
        torch.nn.functional.embedding(batches[0].tokens, model.embedding.word_embeddings.weight)
