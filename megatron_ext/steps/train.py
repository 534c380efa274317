"""Train a model from scratch, or fine-tune one: ``python -m megatron_ext.steps.train SPEC.yaml``.

``specs.TrainSpec`` is what it is told.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from megatron_ext.specs import TrainSpec, read
from megatron_ext.summary import Clock


def main(argv: list[str] | None = None) -> None:
    (path,) = sys.argv[1:] if argv is None else argv
    clock = Clock()
    spec: TrainSpec = read(Path(path), TrainSpec)

    from megatron_ext.distributed import process_groups

    with process_groups.start(spec.runtime, spec.seed) as ranks:
        # After start(), which settles device and warnings before megatron-core is imported.
        from megatron_ext.checkpoint import reading, writing
        from megatron_ext.checkpoint.fingerprint import model_fingerprint
        from megatron_ext.data.collate import SequenceDataset
        from megatron_ext.data.sampling import Mixture
        from megatron_ext.data.sequences import Sequences
        from megatron_ext.losses.nll import NLL
        from megatron_ext.model.families import family_of
        from megatron_ext.training import loop
        from megatron_ext.training.resume import Resume
        from megatron_ext.training.schedule import learning_rate
        from megatron_ext.training.trainer import LossTerm, Trainer
        from megatron_ext.updates.weighted_sum import WeightedSum

        parts = {name: Sequences.load(Path(name)) for name in spec.data}
        for name, share in spec.parts.items():
            parts[name] = Sequences.part(parts[name], share, spec.seed)
        pool = SequenceDataset(list(parts.values()))
        batching = spec.batching
        mixture = Mixture(
            {name: len(part) for name, part in parts.items()},
            spec.data,
            batching.global_batch,
            spec.length_window,
            spec.seed,
        )
        if spec.model.checkpoint is not None:
            model = reading.load(spec.model.checkpoint, ranks, training=spec.runtime)
            origin = model_fingerprint(spec.model.checkpoint)
        else:
            assert spec.model.config is not None
            model = reading.initialise(spec.model.config, ranks, spec.seed, training=spec.runtime)
            origin = "initialised"
        for name, part in parts.items():
            part.check(name, model.hf_config["vocab_size"], family_of(model.hf_config).context(model.hf_config))
        trainer = Trainer(model, ranks, spec.optimizer, batching.micro_batch)
        identity = {
            "spec": spec.model_dump(mode="json", exclude={"runtime": {"timeout_seconds"}, "output": True}),
            "data": [part.sha256() for part in parts.values()],
            "model": origin,
        }
        resume = Resume(spec.output, identity, trainer)
        clock.mark("startup")

        def step(i: int) -> tuple[dict[str, Any], int, bool]:
            term = LossTerm("loss", NLL(), pool, mixture.rows(i, pool.lengths))
            schedule = spec.optimizer.schedule
            rate = learning_rate(spec.optimizer, i, spec.steps, schedule.warmup_steps)
            result = trainer.step([term], WeightedSum(), rate)
            record = {"loss": result.losses["loss"], "update_norm": result.update_norm, "learning_rate": rate}
            return record, int(pool.lengths[term.rows].sum()), result.stop

        with loop.stoppable(trainer):
            loop.run(trainer, resume, spec.steps, spec.checkpoint_every, step, f"train {spec.output.name}")
            clock.mark("work")
            tokenizer = spec.model.tokenizer or spec.model.checkpoint
            trainer.refuse_broken_weights()
            writing.save(model, ranks, spec.output / "checkpoint", tokenizer)
            resume.finish(spec.output / "steps.jsonl")
            clock.mark("write")
        if ranks.world_rank == 0:
            clock.write(spec.output, steps=spec.steps)


if __name__ == "__main__":
    main()
