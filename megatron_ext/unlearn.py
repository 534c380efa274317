"""Unlearn: ``python -m megatron_ext.unlearn SPEC.yaml`` (see specs.UnlearnSpec).

A method is a forget loss, a retain loss and an update rule. Each optimizer step pairs forget rows with as many retain
rows, takes the two gradients, and moves along the direction that the rule makes of them.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from megatron_ext.specs import UnlearnSpec, read
from megatron_ext.summary import Clock


def main(argv: list[str] | None = None) -> None:
    (path,) = sys.argv[1:] if argv is None else argv
    clock = Clock()
    spec: UnlearnSpec = read(Path(path), UnlearnSpec)

    from megatron_ext import runtime

    with runtime.start(spec.runtime, spec.seed) as ranks:
        # After start(), which settles device and warnings before megatron-core is imported.
        import torch

        from megatron_ext import loop, weights
        from megatron_ext.batches import Pairs, Pool
        from megatron_ext.families import family_of
        from megatron_ext.reference import load_reference
        from megatron_ext.resume import Resume
        from megatron_ext.schedule import learning_rate
        from megatron_ext.sequences import Sequences
        from megatron_ext.trainer import StepResult, Term, Trainer

        forget, retain = Sequences.load(spec.forget_data), Sequences.load(spec.retain_data)
        fingerprint = weights.fingerprint(spec.checkpoint)
        reference = load_reference(spec.reference, forget, fingerprint) if spec.reference else None
        forget_pool, retain_pool = Pool([forget], reference), Pool([retain])
        batching = spec.batching
        pairs = Pairs(
            len(forget), len(retain) if spec.retain_loss else 0, batching.global_batch, spec.epochs, spec.seed
        )
        warmup = spec.optimizer.schedule.warmup_steps + round(spec.warmup_epochs * pairs.steps_per_epoch)
        model = weights.load(spec.checkpoint, ranks)
        for name, part in ((spec.forget_data, forget), (spec.retain_data, retain)):
            part.check(str(name), model.hf_config["vocab_size"], family_of(model.hf_config).context(model.hf_config))
        trainer = Trainer(model, ranks, spec.optimizer, batching.micro_batch)
        before = trainer.checksum()
        identity = {
            "spec": spec.model_dump(mode="json", exclude={"runtime": {"threads", "timeout_seconds"}, "output": True}),
            "data": [forget.sha256(), retain.sha256()],
            "model": fingerprint,
            "reference": None if reference is None else reference.tobytes().hex(),
        }
        resume = Resume(spec.output, identity, trainer)
        clock.mark("startup")

        def step(i: int) -> tuple[dict[str, Any], int, bool]:
            forget_rows, retain_rows = pairs.rows(i)
            terms = [Term("forget_loss", spec.forget_loss, forget_pool, forget_rows)]
            if spec.retain_loss is not None:
                terms.append(Term("retain_loss", spec.retain_loss, retain_pool, retain_rows))
            rate = learning_rate(spec.optimizer, i, pairs.steps, warmup)
            result = trainer.step(terms, spec.rule, rate, spec.diagnostics)
            if result.direction.note and ranks.world_rank == 0:
                print(f"step {i}: {result.direction.note}", file=sys.stderr)
            tokens = int(forget_pool.lengths[forget_rows].sum() + retain_pool.lengths[retain_rows].sum())
            return record(result, pairs.epoch(i), rate), tokens, result.stop

        def record(result: StepResult, epoch: float, rate: float) -> dict[str, Any]:
            p, u, two = result.products, result.direction, spec.retain_loss is not None
            return {
                "epoch": epoch,
                "forget_loss": result.losses["forget_loss"],
                "retain_loss": result.losses.get("retain_loss"),
                "forget_grad_norm": p.ff**0.5 if p else None,
                "retain_grad_norm": p.rr**0.5 if p and two else None,
                "grad_cosine": p.cosine if p else None,
                "forget_alignment": p.forget_alignment(u) if p else None,
                "retain_alignment": p.retain_alignment(u) if p else None,
                "update_norm": result.update_norm,
                "learning_rate": rate,
                "dual": None,
                "note": u.note,
            }

        loop.run(trainer, resume, pairs.steps, spec.checkpoint_every, step, f"unlearn {spec.output.name}")
        changed = (trainer.checksum() != before).any().long()
        if ranks.world_size > 1:
            torch.distributed.all_reduce(changed)
        clock.mark("work")
        trainer.refuse_broken_weights()
        weights.save(model, ranks, spec.output / "checkpoint", spec.checkpoint)
        resume.finish(spec.output / "steps.jsonl")
        clock.mark("write")
        if ranks.world_rank == 0:
            lines = (spec.output / "steps.jsonl").read_text().splitlines()
            notes = sorted({note for line in lines if (note := json.loads(line)["note"])})
            clock.write(spec.output, [] if changed else ["unchanged"], steps=pairs.steps, notes=notes)


if __name__ == "__main__":
    main()
