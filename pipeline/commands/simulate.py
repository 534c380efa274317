"""``unlearn simulate``: a step on every distinct rank of a layout, in this one process, without one number."""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from megatron_ext.specs import TrainSpec, UnlearnSpec
from pipeline.commands.validate import add_experiment, planned
from pipeline.config import site as sites
from pipeline.config.located_yaml import ConfigError, hint
from pipeline.data.errors import printable
from pipeline.hub import local_files
from pipeline.workflow import costs
from pipeline.workflow.plan import Plan

if TYPE_CHECKING:
    from megatron_ext.simulation.steps import Simulated

USAGE = """
unlearn simulate tofu-llama-3.1-70b                      shapes, memory and messages of every step that trains
unlearn simulate tofu-llama-3.1-70b --step unlearned/blur-npo/seed-0 --step unlearned/graddiff/seed-0
unlearn simulate my.yaml --set 'layout={tensor: 8, pipeline: 4, data: 2}'
"""
GIB = 2**30


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments to its parser."""
    add_experiment(parser)
    add = parser.add_argument
    add("--step", action="append", default=[], metavar="NAME", help="only this one; may be given several times")
    add("--site", type=Path, metavar="FILE", help="a cluster's file; default: site.yaml")


def main(given: argparse.Namespace) -> int:
    """Print what each rank would hold and exchange, or what is wrong with the experiment; returns the exit status."""
    warnings.simplefilter("ignore")  # of libraries, about what a CPU lacks and a GPU's environment
    try:
        plan, _ = planned(given, cluster=sites.find(given.site) is not None)
        chosen = _chosen(plan, given.step)
        _architecture(plan)
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 2
    shown: set[tuple[object, ...]] = set()
    for name, spec in chosen.items():
        found = _simulated(plan, spec)
        lines = [*memory(name, found, costs.step_memory(plan, spec).total), "", *messages(found), ""]
        shapes = (type(spec), *(tuple(each.shapes.items()) for each in found))
        lines += [] if shapes in shown else [*parameters(found), ""]
        shown.add(shapes)
        print(printable("\n".join(lines)), flush=True)
    return 0


def memory(name: str, found: Sequence[Simulated], planned_peak: int) -> list[str]:
    """A line a distinct rank: what it holds in GiB, and the most of all beside what ``unlearn plan`` says."""
    heads = ["weights", "gradients", "vectors", "optimizer", "reference", "host", "peak", "planned"]
    largest = max(each.peak for each in found)
    rows = [[f"{name}, GiB a rank", *heads]]
    for each in found:
        held = [each.weights, each.gradients, each.vectors, each.optimizer, each.reference, each.host]
        plan = f"{planned_peak / GIB:.2f}" if each.peak == largest else ""
        rows.append([f"stage {each.stage}", *(f"{number / GIB:.2f}" for number in [*held, each.peak]), plan])
    return aligned(rows)


def messages(found: Sequence[Simulated]) -> list[str]:
    """A line for each kind, group and size of message: how often a rank of each stage exchanges it in a step."""
    rows = [["messages of a step", "group", "bytes", *(f"stage {each.stage}" for each in found)]]
    for message in sorted({message for each in found for message in each.messages}):
        counts = [str(each.messages.get(message, "")) for each in found]
        rows.append([message.kind, message.group, str(message.size), *counts])
    return aligned(rows)


def parameters(found: Sequence[Simulated]) -> list[str]:
    """A line for each name and shape of a parameter: how many of them a rank of each stage has."""
    rows = [["parameters", "shape", *(f"stage {each.stage}" for each in found)]]
    for name, shape in dict.fromkeys(key for each in found for key in each.shapes):
        counts = [str(each.shapes.get((name, shape), "")) for each in found]
        rows.append([name, " x ".join(map(str, shape)), *counts])
    return aligned(rows)


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows of cells as lines whose columns are as wide as their widest cell."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows]


def _simulated(plan: Plan, spec: TrainSpec | UnlearnSpec) -> list[Simulated]:
    from megatron_ext.simulation import steps

    config, length = _architecture(plan), plan.config.experiment.data.max_length
    return [steps.simulate(spec, config, length, rank) for rank in steps.distinct_ranks(spec)]


def _architecture(plan: Plan) -> dict[str, Any]:
    """The model's Hugging Face config: its file's, or that of a folder on this machine.

    Raises:
        ConfigError: Neither is there.
    """
    model = plan.config.model
    if model.architecture is not None:
        return model.architecture
    published = model.checkpoints
    for each in (published.base, published.target, *published.retrain.values()):
        found = local_files.architecture(each.folder) if each is not None and each.folder is not None else None
        if found is not None:
            return found
    raise ConfigError([f"model: {model.name!r} is on the hub only; needed: its 'architecture', or a local folder"])


def _chosen(plan: Plan, names: Sequence[str]) -> dict[str, TrainSpec | UnlearnSpec]:
    """The steps that train, or those of them that are named.

    Raises:
        ConfigError: There is none of a name, or one that cannot be simulated.
    """
    from megatron_ext.simulation.steps import problem

    known = {name: spec for name, spec in costs.model_steps(plan) if isinstance(spec, TrainSpec | UnlearnSpec)}
    problems = [f"--step: unknown step {name!r}{hint(name, list(known))}" for name in names if name not in known]
    chosen = {name: spec for name, spec in known.items() if not names or name in names}
    problems += sorted({found for found in map(problem, chosen.values()) if found is not None})
    if problems:
        raise ConfigError(problems)
    return chosen
