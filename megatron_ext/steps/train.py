"""Train a model from scratch, or fine-tune one: ``python -m megatron_ext.steps.train SPEC.yaml``.

``specs.TrainSpec`` is what it is told.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from megatron_ext.data.sequences import Sequences
from megatron_ext.specs import TrainSpec, read
from megatron_ext.summary import Clock

if TYPE_CHECKING:
    from megatron_ext.distributed.process_groups import Ranks
    from megatron_ext.model.build import LanguageModel
    from megatron_ext.training.loop import StepOutcome
    from megatron_ext.training.trainer import Trainer


def main(argv: list[str] | None = None) -> None:
    """Read the specification, join the process groups, and run it."""
    (path,) = sys.argv[1:] if argv is None else argv
    clock = Clock()
    spec: TrainSpec = read(Path(path), TrainSpec)

    from megatron_ext.distributed import process_groups

    with process_groups.start(spec.runtime, spec.seed) as ranks:
        train(spec, ranks, clock)


def train(spec: TrainSpec, ranks: Ranks, clock: Clock) -> None:
    """Write checkpoint/, steps.jsonl and summary.json into the output folder. Collective over all ranks.

    With ``spec.shared``, a model that was trained there before is copied, and else trained and kept for others.

    Args:
        spec: The run.
        ranks: Where this process stands.
        clock: Counts the time since the process began.

    Raises:
        ValueError: Naming the file and the row, for a sequence that the model cannot read.
    """
    # After process_groups.start(), which settles device and warnings before megatron-core is imported.
    from megatron_ext.checkpoint import shared_models, writing
    from megatron_ext.distributed.collectives import from_first_rank
    from megatron_ext.model.families import family_of
    from megatron_ext.training import loop
    from megatron_ext.training.resume import Resume
    from megatron_ext.training.trainer import Trainer

    parts = _parts(spec)
    kept_as = "" if spec.shared is None else from_first_rank(lambda: _shared_name(spec, parts), ranks)
    if kept_as and _copied(spec, kept_as, ranks, clock):
        return
    model, origin = _model(spec, ranks)
    for name, part in parts.items():
        part.check(name, model.hf_config["vocab_size"], family_of(model.hf_config).context(model.hf_config))
    batching = spec.batching
    trainer = Trainer(
        model,
        ranks,
        spec.optimizer,
        batching.micro_batch,
        micro_batch_tokens=batching.micro_batch_tokens,
        memory=spec.runtime.memory,
        packed=batching.packed,
    )
    identity = {
        "spec": spec.model_dump(mode="json", exclude={"runtime": {"timeout_seconds"}, "output": True, "shared": True}),
        "data": [part.sha256() for part in parts.values()],
        "model": origin,
    }
    resume = Resume(spec.output, identity, trainer)
    step = _steps(spec, parts, trainer)
    clock.mark("startup")

    with loop.stoppable(trainer):
        every, minutes = spec.checkpoint_every, spec.checkpoint_minutes
        title = f"train {spec.output.name}"
        loop.run(trainer, resume, spec.steps, every, step, title, checkpoint_minutes=minutes)
        clock.mark("work")
        trainer.refuse_broken_weights()
        writing.save(model, ranks, spec.output / "checkpoint", spec.model.tokenizer or spec.model.checkpoint)
        resume.finish(spec.output / "steps.jsonl")
        clock.mark("write")
    if ranks.world_rank == 0:
        summary = clock.write(spec.output, steps=spec.steps)
        if spec.shared is not None:
            facts = {"steps": spec.steps, "trained_seconds": summary["work_seconds"]}
            try:
                shared_models.store(spec.shared, kept_as, spec.output, facts)
            except OSError as error:  # the model itself is written, and no state is left to train it again from
                print(f"not kept for other experiments: {spec.shared / kept_as}: {error}", file=sys.stderr)


def _model(spec: TrainSpec, ranks: Ranks) -> tuple[LanguageModel, str]:
    """The model before training, and what tells it from others."""
    from megatron_ext.checkpoint import reading
    from megatron_ext.checkpoint.fingerprint import model_fingerprint

    if spec.model.checkpoint is not None:
        model = reading.load(spec.model.checkpoint, ranks, training=spec.runtime)
        return model, model_fingerprint(spec.model.checkpoint)
    assert spec.model.config is not None
    return reading.initialise(spec.model.config, ranks, spec.seed, training=spec.runtime), "initialised"


def _shared_name(spec: TrainSpec, parts: dict[str, Sequences]) -> str:
    """What the model of this run is called among trained models: its folders decide nothing, their contents do."""
    from megatron_ext.checkpoint import shared_models
    from megatron_ext.checkpoint.fingerprint import model_fingerprint

    elsewhere = {"model": {"checkpoint", "tokenizer"}, "runtime": {"timeout_seconds"}}
    settings = spec.model_dump(
        mode="json", exclude={**elsewhere, "data": True, "parts": True, "output": True, "shared": True}
    )
    origin = spec.model.checkpoint
    return shared_models.key(
        settings=settings,
        data=[[Path(path).name, part.sha256(), spec.data[path]] for path, part in parts.items()],
        origin=None if origin is None else model_fingerprint(origin),
        tokenizer=shared_models.tokenizer_digests(spec.model.tokenizer or origin),
    )


def _copied(spec: TrainSpec, name: str, ranks: Ranks, clock: Clock) -> bool:
    """Copy the model of that name and write summary.json, if there is one. Collective over all ranks."""
    from megatron_ext.checkpoint import shared_models
    from megatron_ext.distributed.collectives import from_first_rank
    from megatron_ext.training.resume import folder_of

    def copy() -> bool:
        assert spec.shared is not None
        clock.mark("startup")
        facts = shared_models.fetch(spec.shared, name, spec.output)
        if facts is not None:
            print(f"copied from {spec.shared / name}", flush=True)
            shutil.rmtree(folder_of(spec.output), ignore_errors=True)
            clock.mark("write")
            clock.write(spec.output, **facts, shared=name)
        return facts is not None

    return from_first_rank(copy, ranks)


def _parts(spec: TrainSpec) -> dict[str, Sequences]:
    """The sequences of each file, or the share of them that is used."""
    parts = {name: Sequences.load(Path(name)) for name in spec.data}
    for name, share in spec.parts.items():
        parts[name] = Sequences.part(parts[name], share, spec.seed)
    return parts


def _steps(spec: TrainSpec, parts: dict[str, Sequences], trainer: Trainer) -> Callable[[int], StepOutcome]:
    """The function that takes the optimizer step of a given number."""
    from megatron_ext.data.collate import SequenceDataset
    from megatron_ext.data.sampling import Mixture
    from megatron_ext.losses.nll import NLL
    from megatron_ext.training.loop import StepOutcome
    from megatron_ext.training.loss_terms import LossTerm
    from megatron_ext.training.schedule import learning_rate
    from megatron_ext.updates.weighted_sum import WeightedSum

    dataset = SequenceDataset(list(parts.values()))
    sizes = {name: len(part) for name, part in parts.items()}
    mixture = Mixture(sizes, spec.data, spec.batching.global_batch, spec.length_window, spec.seed)

    def step(i: int) -> StepOutcome:
        term = LossTerm("loss", NLL(), dataset, mixture.rows(i, dataset.lengths))
        warmup = spec.optimizer.schedule.warmup_steps
        rate = learning_rate(spec.optimizer, i, spec.steps, warmup)
        taken = trainer.step([term], WeightedSum(), rate)
        record = {"loss": taken.losses["loss"], "update_norm": taken.update_norm, "learning_rate": rate}
        return StepOutcome(record, term.tokens, taken.stop)

    return step


if __name__ == "__main__":
    main()
