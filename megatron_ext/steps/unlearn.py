"""Unlearn: ``python -m megatron_ext.steps.unlearn SPEC.yaml``. ``specs.UnlearnSpec`` is what it is told."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from megatron_ext.specs import UnlearnSpec, read
from megatron_ext.summary import Clock

if TYPE_CHECKING:
    from megatron_ext.distributed.process_groups import Ranks


def main(argv: list[str] | None = None) -> None:
    """Read the specification, join the process groups, and run it."""
    (path,) = sys.argv[1:] if argv is None else argv
    clock = Clock()
    spec: UnlearnSpec = read(Path(path), UnlearnSpec)

    from megatron_ext.distributed import process_groups

    with process_groups.start(spec.runtime, spec.seed) as ranks:
        unlearn(spec, ranks, clock)


def unlearn(spec: UnlearnSpec, ranks: Ranks, clock: Clock) -> None:
    """Write checkpoint/, epochs/ where it is asked for, steps.jsonl, trajectory.jsonl (empty without validation) and
    summary.json.

    Collective over all ranks.

    Args:
        spec: The run.
        ranks: Where this process stands.
        clock: Counts the time since the process began.
    """
    # After process_groups.start(), which settles device and warnings before megatron-core is imported.
    from megatron_ext.training import loop
    from megatron_ext.training.unlearning import UnlearningRun

    run = UnlearningRun(spec, ranks)
    clock.mark("startup")

    def measure(steps: int) -> None:
        clock.mark("work")
        if spec.validation is not None:
            run.validate(steps)
            clock.mark("work", "validation")
        run.save_epoch(steps)
        clock.mark("write")

    with loop.stoppable(run.trainer):
        loop.run(
            run.trainer,
            run.resume,
            run.steps,
            spec.checkpoint_every,
            run.step,
            title=f"unlearn {spec.output.name}",
            validate=measure if spec.validation is not None or spec.saved_epochs else None,
            ended=run.ended,
            checkpoint_minutes=spec.checkpoint_minutes,
        )
        selected = run.select()
        retain_nll = run.final_retain_nll()
        clock.mark("work")
        run.write()
        clock.mark("write")
    if ranks.world_rank == 0:
        clock.write(spec.output, run.flags, **run.facts(selected, retain_nll))


if __name__ == "__main__":
    main()
