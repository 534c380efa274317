"""``unlearn plan``: what an experiment costs on GPUs before any is there, and a layout that fits them."""

from __future__ import annotations

import argparse
import math
import re
import sys
from pathlib import Path

from megatron_ext.config import Layout
from pipeline.commands.validate import add_experiment, planned
from pipeline.config import auto_layout
from pipeline.config import site as sites
from pipeline.config.located_yaml import ConfigError, hint
from pipeline.data.errors import printable
from pipeline.workflow import costs
from pipeline.workflow.costs import Cost, Gpu
from pipeline.workflow.plan import Plan

USAGE = """
unlearn plan tofu-llama-3.1-70b                              memory, operations, time and disk of every step
unlearn plan tofu-llama-3.1-70b --gpus 64 --gpu-memory 80GiB    and a layout for that many GPUs
unlearn plan my.yaml --gpu-type h200-141 --price 3.5 --gpus-file my-gpus.yaml
"""
MARK = " *"  # of what does not fit


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments to its parser."""
    add_experiment(parser)
    add = parser.add_argument
    add("--gpus", type=int, metavar="N", help="recommend a layout for so many GPUs; default: those of the experiment's")
    add("--gpu-memory", metavar="SIZE", help="of each GPU, such as 80GiB; default: that of its type")
    add("--gpu-type", default="h100-80", metavar="NAME", help="a type of the table of GPUs (default: %(default)s)")
    add("--gpus-file", type=Path, default=costs.TABLE, metavar="FILE", help="a table of your own (%(default)s)")
    add("--price", type=float, metavar="P", help="of a GPU for an hour, in any currency")
    add("--site", type=Path, metavar="FILE", help="a cluster's file, for the GPUs of its nodes; default: site.yaml")


def main(given: argparse.Namespace) -> int:
    """Print the plan, or what is wrong with the experiment; returns the exit status: 1 where a step does not fit."""
    try:
        gpu = _gpu(given)
        plan, site = planned(given, cluster=sites.find(given.site) is not None)
        size = size_of(given.gpu_memory) if given.gpu_memory else gpu.memory_gib * 2**30
        if given.gpus is not None and given.gpus < 1:
            raise ConfigError([f"--gpus: {given.gpus}; at least 1 is needed"])
        if given.price is not None and not 0 <= given.price < math.inf:
            raise ConfigError([f"--price: {given.price:g}; 0 or more is needed"])
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 2
    node = (site.gpus_per_node if site else 0) or auto_layout.NODE
    found = costs.costs(plan, gpu, node)
    lines = [*table(found, plan.config.layout.ranks, size), "", *totals(found, plan, given.price)]
    lines += ["", *advice(plan, given.gpus or plan.config.layout.ranks, size, node), "", *assumed(gpu, given.gpu_type)]
    print(printable("\n".join(lines)))
    return 0 if all(auto_layout.fits(cost.memory.total, size) for cost in found) else 1


def table(found: list[Cost], ranks: int, size: float) -> list[str]:
    """A line a step: GiB on the largest rank by what they are for, and what the step costs."""
    heads = ["weights", "gradients", "vectors", "optimizer", "reference", "activations", "recomputed", "logits"]
    heads += ["peak", "host"]
    rows = [["step, GiB a rank", *heads, "PFLOP", "moved GB", "hours", "GPU hours", "disk GB"]]
    for cost in found:
        m, activations = cost.memory, [each.activations + each.block for each in (cost.memory, cost.recomputed)]
        held = [m.weights, m.gradients, m.vectors, m.optimizer, m.reference, *activations]
        cells = [f"{number / 2**30:.1f}" for number in [*held, m.logits, m.total, m.host]]
        cells[-2] += "" if auto_layout.fits(m.total, size) else MARK
        hours = cost.seconds / 3600
        spent = [f"{cost.operations / 1e15:.3g}", f"{cost.moved / 1e9:.3g}", f"{hours:.2f}", f"{hours * ranks:.1f}"]
        rows.append([cost.name, *cells, *spent, f"{cost.disk / 1e9:.1f}"])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows]


def totals(found: list[Cost], plan: Plan, price: float | None) -> list[str]:
    """GPU hours, disk and money of all steps."""
    hours = sum(cost.seconds for cost in found) / 3600 * plan.config.layout.ranks
    money = "" if price is None else f", {hours * price:,.2f} at {price:g} an hour"
    return [f"together   {hours:.1f} GPU hours{money}; {sum(cost.disk for cost in found) / 1e9:.0f} GB written"]


def advice(plan: Plan, ranks: int, size: float, node: int) -> list[str]:
    """A layout for so many GPUs, and why it."""
    free = f"{size / 2**30:g} GiB less {auto_layout.RESERVE / 2**30:g} for CUDA and NCCL"
    best = costs.recommended(plan, ranks, size, node)
    if best is None:
        more = "more GPUs, recompute_activations, or a smaller micro_batch or token_budget"
        return [f"layout     none of {ranks} GPUs holds every step ({free}): {more}"]
    layout, peak = best
    why = (
        "the fewest pipeline stages, which idle, and then the fewest tensor-parallel ranks, which exchange activations,"
    )
    return [f"layout     {named(layout)}: at most {peak / 2**30:.1f} GiB ({free}); {why} that fit"]


def assumed(gpu: Gpu, name: str) -> list[str]:
    """Which of the numbers behind the time are assumptions."""
    values = gpu.model_dump(exclude={"measured"})
    texts = [f"{key} {value:g}" for key, value in values.items() if key not in gpu.measured]
    rows = "rows as long as data.max_length"
    return [f"assumed    {name}: {', '.join(texts)}; {rows}", "*          does not fit"]


def named(layout: Layout) -> str:
    """A layout as YAML on one line."""
    given = layout.model_dump(exclude_defaults=True)
    return "{" + ", ".join(f"{key}: {str(value).lower()}" for key, value in given.items()) + "}"


def _gpu(given: argparse.Namespace) -> Gpu:
    known = costs.gpus(given.gpus_file)
    if given.gpu_type not in known:
        raise ConfigError([f"--gpu-type: unknown type {given.gpu_type!r}{hint(given.gpu_type, list(known))}"])
    return known[given.gpu_type]


def size_of(text: str) -> float:
    """Bytes of a text such as ``80GiB`` or ``80GB``.

    Raises:
        ConfigError: It is another one.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(GiB|GB)", text)
    if match is None:
        raise ConfigError([f"--gpu-memory: {text!r}; allowed: a number with its unit, such as 80GiB or 80GB"])
    return float(match[1]) * {"GiB": 2**30, "GB": 1e9}[match[2]]
