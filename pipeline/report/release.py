"""Remove checkpoints that are not kept: ``python -m pipeline.report.release SPEC.yaml``.

The specification is a ``pipeline.specs.ReleaseSpec``. Writes ``ready.json``, which says that nothing is left to be done
with the model's checkpoints, and then ``summary.json`` with what was removed. Of models that compete, those that are
ready with all their seeds are compared, and all but the best give way: what is the best of all is never removed.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from megatron_ext.atomic_files import write_json
from megatron_ext.specs import read as read_spec
from megatron_ext.summary import Clock
from pipeline.benchmarks import family
from pipeline.report import read, selection
from pipeline.specs import ReleaseSpec

READY = "ready.json"
# Ends the name of a folder that is being removed: half a checkpoint is never taken for a whole one.
REMOVED = ".removed"


def main(argv: Sequence[str] | None = None) -> None:
    """Remove what the specification says.

    Raises:
        ValueError: a file of a model that is compared is malformed; the message names file and key
        OSError: a folder cannot be removed
    """
    (path,) = sys.argv[1:] if argv is None else argv
    clock = Clock()
    spec: ReleaseSpec = read_spec(Path(path), ReleaseSpec)
    # Before anything is compared: of two that do this at once, at least one sees the other.
    write_json(spec.output / READY, {"model": spec.model_id})
    clock.mark("startup")
    given_way = removable(spec)
    clock.mark("work")
    removed = [str(folder) for model in given_way for folder in spec.checkpoints[model] if _remove(folder)]
    clock.mark("write")
    clock.write(spec.output, removed=removed)


def removable(spec: ReleaseSpec) -> list[str]:
    """The models whose checkpoints nothing needs, and which are not the best so far."""
    if spec.choice is None:
        return [spec.model_id]
    done = [entry for entry in spec.choice.entries if entry.model_id == spec.model_id or _ready(spec, entry.model_id)]
    waiting = {(e.method, e.variant) for e in spec.choice.entries if e not in done}
    whole = [entry for entry in done if (entry.method, entry.variant) not in waiting]
    if not whole:
        return []
    compared = spec.choice.model_copy(update={"entries": whole})
    metrics = family(compared.options.family).metrics(compared.options)
    best = selection.choices(compared, read.load(compared), metrics)
    return [entry.model_id for entry in whole if selection.run_of(entry) not in best] if best else []


def _ready(spec: ReleaseSpec, model: str) -> bool:
    """Whether all that reads a model's checkpoints was done when its own release began, and is no older than that."""
    try:
        begun = (spec.output.parent / model / READY).stat().st_mtime_ns
        return all(summary.stat().st_mtime_ns <= begun for summary in spec.readers[model])
    except FileNotFoundError:
        return False


def _remove(folder: Path) -> bool:
    """Remove a checkpoint, and what is left of an earlier attempt; whether it was there."""
    aside = folder.with_name(folder.name + REMOVED)
    shutil.rmtree(aside, ignore_errors=True)
    try:
        folder.rename(aside)
    except FileNotFoundError:
        return False
    shutil.rmtree(aside)
    return True


if __name__ == "__main__":
    main()
