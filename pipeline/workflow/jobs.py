"""A job: one run of a step, with its whole specification and the files that it reads."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from megatron_ext.schema import Strict
from megatron_ext.specs import StepSpec
from pipeline.workflow.paths import Paths

Files = tuple[Path, ...]


@dataclass(frozen=True)
class Job:
    """One run of a step.

    Attributes:
        name: Its folder below the experiment's.
        spec: All that its program is told.
        reads: By what they are for, the files that it reads, of other jobs and of the user's. A change in one of them
            is a reason to run the job again.
    """

    name: str
    spec: StepSpec
    reads: Mapping[str, Files]

    @property
    def inputs(self) -> Files:
        """All files that it reads."""
        return tuple(path for files in self.reads.values() for path in files)

    @property
    def ranks(self) -> int:
        """Processes that run it together."""
        return self.spec.ranks


def job_of(paths: Paths, spec: StepSpec, **reads: Files) -> Job:
    """The job of a specification, named by the folder that it writes."""
    return Job(spec.output.relative_to(paths.root).as_posix(), spec, reads)


def canonical(spec: Strict) -> str:
    """A specification as one line of JSON that is the same for equal specifications."""
    return json.dumps(spec.model_dump(mode="json"), sort_keys=True, separators=(",", ":"), ensure_ascii=False)
