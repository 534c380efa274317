"""Unlearn: ``python -m megatron_ext.steps.unlearn SPEC.yaml`` (see specs.UnlearnSpec)."""

from __future__ import annotations

import sys
from pathlib import Path

from megatron_ext.specs import UnlearnSpec, read
from megatron_ext.summary import Clock


def main(argv: list[str] | None = None) -> None:
    (path,) = sys.argv[1:] if argv is None else argv
    clock = Clock()
    spec: UnlearnSpec = read(Path(path), UnlearnSpec)

    from megatron_ext.distributed import process_groups

    with process_groups.start(spec.runtime, spec.seed) as ranks:
        # After start(), which settles device and warnings before megatron-core is imported.
        from megatron_ext.steps.unlearning import unlearn

        unlearn(spec, ranks, clock)


if __name__ == "__main__":
    main()
