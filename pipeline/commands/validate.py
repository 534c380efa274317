"""``python -m pipeline validate``: what an experiment will run, or everything that is wrong with it."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from megatron_ext.specs import AlternativesSpec, ReferenceSpec, StepSpec, TrainSpec, UnlearnSpec
from pipeline.commands.show_row import lines
from pipeline.config import memory, methods, sizing
from pipeline.config import site as sites
from pipeline.config.experiment import Config
from pipeline.config.load import load
from pipeline.config.located_yaml import ConfigError
from pipeline.config.site import Site
from pipeline.data.errors import printable
from pipeline.data.settings import FilesSource
from pipeline.data.templates import Template
from pipeline.specs import EvaluateSpec, OwnAnswersSpec
from pipeline.workflow import resources
from pipeline.workflow.paths import refused_inputs
from pipeline.workflow.plan import Plan
from pipeline.workflow.snakemake_rules import use_cache
from pipeline.workflow.work import describe

USAGE = """
unlearn validate mini                              jobs, optimizer steps, memory
unlearn validate mini --show-row 0                 a row of what is forgotten, with its labels
unlearn validate mini --set methods.blur-npo.rule.gamma=0.5 --set seeds='[0, 1]'
unlearn validate my/experiment.yaml --site site.yaml   nodes and time limits on a cluster as well
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments to its parser."""
    add_experiment(parser)
    row = "show a row of what is forgotten, from 0: its text, its tokens, and which of them are labelled"
    parser.add_argument("--show-row", type=int, metavar="N", help=row)
    parser.add_argument(
        "--site", type=Path, metavar="FILE", help="a cluster's file, to plan for its nodes; default: site.yaml"
    )


def add_experiment(parser: argparse.ArgumentParser) -> None:
    """Add what says which experiment is meant."""
    add = parser.add_argument
    add("experiment", help="an experiment file, or the name of one in workflow_configs/experiments")
    setting = "a value in place of the experiment's own; may be given several times"
    add("--set", action="append", default=[], metavar="KEY=VALUE", help=setting)
    add("--data-root", type=Path, metavar="DIR", help="local folder of the benchmark's files, instead of the hub")
    add("--results", type=Path, default=Path("results"), metavar="DIR", help="folder of the results (%(default)s)")


def main(given: argparse.Namespace) -> int:
    """Print what the experiment will run, or its mistakes; returns the exit status."""
    try:
        plan, site = planned(given, cluster=sites.find(given.site) is not None)
        row = [] if given.show_row is None else ["", *lines(plan, given.show_row)]
    except ConfigError as error:
        print(error, file=sys.stderr)
        print(sizing.number_of(len(error.problems), "problem"), file=sys.stderr)
        return 2
    config = plan.config
    print(printable("\n".join([*summary(config), "", *jobs(plan, site), "", *notes(config, site), *row])))
    return 0


def planned(given: argparse.Namespace, cluster: bool) -> tuple[Plan, Site | None]:
    """The plan of the experiment that a command line names.

    Args:
        given: The command line, with ``experiment``, ``data_root``, ``results``, ``site`` and ``set``.
        cluster: Whether jobs run on the site's nodes, and not on this machine.

    Returns:
        The plan, and the site that jobs run on, if they do.

    Raises:
        ConfigError: Lists everything that is wrong.
    """
    file = sites.find(given.site)
    here = sites.load(file)
    use_cache(here)
    site = here if cluster else None
    plan = Plan(load(given.experiment, given.data_root, site, given.set), given.results)
    lacking = resources.problems(plan, site, sites.named(file)) if site else []
    lacking += refused_inputs((path for job in plan.jobs.values() for path in job.inputs), cluster)
    if lacking:
        raise ConfigError(lacking)
    return plan, site


def summary(config: Config) -> list[str]:
    """The experiment in a few lines: model, data, layout."""
    experiment, layout, runtime = config.experiment, config.layout, config.experiment.runtime
    split = f", split {layout.pipeline_split}" if layout.pipeline_split else ""
    optimizer = ", distributed optimizer" if layout.distributed_optimizer else ""
    optimizer += ", sequence parallel" if layout.sequence_parallel else ""
    return [
        f"experiment {experiment.name}: {experiment.title}",
        f"model      {config.model.title}, {_count(config.shape.parameters)} parameters",
        f"benchmark  {config.benchmark.title}, {experiment.split} ({config.forget_rows} rows to forget), "
        + _source(config),
        *([f"utility    {', '.join(one.benchmark.title for one in config.utility)}"] if config.utility else []),
        f"layout     {sizing.number_of(layout.ranks, 'rank')}: tensor {layout.tensor} x pipeline "
        f"{layout.pipeline} x data {layout.data}{split}{optimizer}; {runtime.device}, {runtime.precision}"
        + (", recomputed activations" if runtime.recompute_activations else ""),
        *([f"judge      {experiment.judge.model}; {experiment.judge.sends}"] if experiment.judge else []),
        f"template   {_template(config)}",
    ]


def _template(config: Config) -> str:
    """How a question and its answer become one text."""
    name = config.model.template if isinstance(config.model.template, str) else config.model.template.name or "parts"
    template = Template.of(config.template)
    return f"{name}: {template.prompt('QUESTION')!r} {template.completion('ANSWER')!r}"


def _source(config: Config) -> str:
    source, split = config.source, config.experiment.split
    if not isinstance(source, FilesSource):
        return ", ".join(f"{key} {value}" for key, value in source.model_dump(exclude_none=True).items())
    uses = [f"{use}: {', '.join(names)}" for use, names in source.splits[split].named.items() if names]
    return "; ".join(["files", *uses])


def jobs(plan: Plan, site: Site | None = None) -> list[str]:
    """A table of the jobs: step, folder, ranks, memory of weights, gradients and optimizer on the largest rank, work.

    Args:
        plan: The jobs.
        site: A cluster, for columns with what each job asks for there: nodes, host memory of each, and time.

    Returns:
        The table's lines, and one that says how many jobs there are.
    """
    rows = [["step", "folder", "ranks", "memory/rank", *(["nodes", "memory/node", "time"] if site else []), "work"]]
    for job in plan.jobs.values():
        asked = _asked(resources.needs(plan, site, job), site, job.spec.program) if site else []
        rows.append([job.spec.program, job.name, str(job.ranks), _memory(plan, job.spec, site), *asked])
        rows[-1].append(describe(plan, job))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)) for row in rows]
    return [*(line.rstrip() for line in lines), "", f"{len(plan.jobs)} jobs; results in {plan.paths.root}"]


def _asked(wanted: resources.Needs, site: Site, step: str) -> list[str]:
    if step.startswith(("fetch", "judge", "release")):
        return ["here", "-", "-"]
    hours, minutes = divmod(wanted.minutes(site), 60)
    return [str(wanted.nodes), _bytes(wanted.memory_mb(site) * 2**20), f"{hours}:{minutes:02d}"]


def notes(config: Config, site: Site | None = None) -> list[str]:
    """What is right but should be known, a line each; the last line says that nothing is wrong.

    Args:
        config: The checked experiment.
        site: The cluster that jobs run on; ``None`` for this machine.
    """
    lines = []
    vocabulary, tensor = config.shape.vocabulary, config.layout.tensor
    if vocabulary % tensor:
        lines.append(f"note: the vocabulary of {vocabulary} is padded to a multiple of {tensor} inside; never on disk")
    if not config.has_retrain:
        lines.append("note: there is no retrain model, so nothing is compared with it")
    length = config.experiment.data.max_length
    new = config.family.cost(config.options, config.forget_rows).new_tokens
    if length + new > config.shape.context:
        lines.append(
            f"note: data.max_length {length} + {new} new tokens of an answer is more than the model's context of "
            f"{config.shape.context}; the answer to a long prompt may be cut short"
        )
    if site is not None:
        nodes = sizing.spread(methods.runtime(config.layout, config.experiment.runtime), site)
        if nodes.ranks % tensor:
            lines.append(f"note: tensor-parallel ranks ({tensor}) are on more than one node of {nodes.ranks}: slow")
    elif config.experiment.runtime.device == "cuda" and not sizing.visible_gpus():
        lines.append("note: this machine shows no GPUs, so their number was not checked")
    return [*lines, "nothing is wrong"]


def _memory(plan: Plan, spec: StepSpec, site: Site | None) -> str:
    config, runtime = plan.config, plan.config.experiment.runtime
    if isinstance(spec, TrainSpec | UnlearnSpec):
        return _bytes(memory.held(spec, config.shape, sizing.on_gpus(runtime.device, site)))
    if isinstance(spec, AlternativesSpec | OwnAnswersSpec | ReferenceSpec | EvaluateSpec):
        return _bytes(memory.scoring_bytes(config.layout, config.shape, runtime.precision))
    return "-"


def _count(number: float) -> str:
    for unit, size in (("billion", 1e9), ("million", 1e6)):
        if number >= size / 10:
            return f"{number / size:.3g} {unit}"
    return f"{number:,}"


def _bytes(number: float) -> str:
    return f"{number / 2**30:.1f} GiB" if number >= 2**30 else f"{number / 2**20:.1f} MiB"
