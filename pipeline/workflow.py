"""What the Snakemake rules ask for: a job's input, source files, specification and threads, from its wildcards."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from pipeline.config import load
from pipeline.documents import ConfigError, hint
from pipeline.plan import Job, Plan, canonical
from pipeline.sizing import on_gpus, visible_gpus
from pipeline.sources import source_files

OPTIONS = ("experiment", "data_root", "results", "image")


def read(options: Mapping[str, Any]) -> Plan:
    """The plan that ``--config`` asks for; prints every problem and exits with 2 where there is one."""
    unknown = [name for name in options if name not in OPTIONS]
    problems = [f"--config {name}: unknown option{hint(name, list(OPTIONS))}" for name in unknown]
    data_root = options.get("data_root")  # Snakemake reads data_root=2024 as a number
    try:
        config = load(str(options.get("experiment", "mini")), None if data_root is None else str(data_root))
    except ConfigError as error:
        problems += error.problems
    if problems:
        print("\n".join(problems), file=sys.stderr)
        sys.exit(2)
    return Plan(config, Path(str(options.get("results", "results"))))


def require_gpus(plan: Plan) -> None:
    """Exit with 2 where jobs that are about to run on this machine need a GPU and it shows none at all."""
    if plan.config.experiment.runtime.device == "cuda" and not visible_gpus():
        why = "nvidia-smi lists none, or is not installed"
        if "CUDA_VISIBLE_DEVICES" in os.environ:
            why = f"CUDA_VISIBLE_DEVICES is {os.environ['CUDA_VISIBLE_DEVICES']!r}"
        print(f"runtime.device: 'cuda', but this machine shows no GPU ({why})", file=sys.stderr)
        sys.exit(2)


def use_this_python() -> None:
    """Let the rules' ``python`` be the one that runs Snakemake, whether or not its environment is activated."""
    os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])


class Rules:
    """Functions for the rules. ``pattern`` is a job's folder below the experiment's, with wildcards in braces."""

    def __init__(self, plan: Plan):
        self.plan = plan

    def inputs(self, pattern: str) -> Callable[[Any], list[str]]:
        """The files that the job reads of other jobs."""
        return lambda wildcards: [str(path) for path in self._job(pattern, wildcards).inputs]

    def source(self, pattern: str) -> Callable[[Any], list[str]]:
        """The source files that the job runs."""
        return lambda wildcards: [_relative(path) for path in source_files(self._job(pattern, wildcards).spec)]

    def spec(self, pattern: str) -> Callable[[Any], str]:
        """The job's specification: a change in it, and only that, is a reason to run the job again."""
        return lambda wildcards: canonical(self._job(pattern, wildcards).spec)

    @property
    def threads(self) -> int:
        """CPU threads of all ranks of a step that loads a model."""
        return self.plan.config.layout.ranks * self.plan.config.experiment.runtime.threads

    def training_threads(self, cores: int | None) -> Callable[[Any], int]:
        """As ``threads``, but every one of ``cores`` for the base model: nothing can run beside it."""
        return lambda wildcards: cores if cores and wildcards.model == "base" else self.threads

    @property
    def accelerator(self) -> int:
        """1 for a step that loads a model onto this machine's GPUs: two at a time would share one GPU's memory."""
        return int(on_gpus(self.plan.config.experiment.runtime.device))

    def _job(self, pattern: str, wildcards: Any) -> Job:
        return self.plan.jobs[pattern.format(**dict(wildcards.items()))]


def one_of(names: Iterable[str]) -> str:
    """A regular expression for exactly these names; for none of them, one that never matches."""
    return "|".join(map(re.escape, names)) or "(?!)"


def _relative(path: Path) -> str:
    here = Path.cwd()
    return str(path.relative_to(here) if path.is_relative_to(here) else path)
