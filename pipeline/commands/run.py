"""``unlearn run``: an experiment from its files to its report, by Snakemake in this process.

One run works on an experiment's results at a time. What a killed run has left at work is ended first
(``pipeline.workflow.runs``).
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path

from pipeline.commands.validate import add_experiment, planned
from pipeline.config import site
from pipeline.config.load import CONFIGS
from pipeline.config.located_yaml import ConfigError, short
from pipeline.launch.lease import Held
from pipeline.tracking.beside import beside
from pipeline.workflow import progress, runs
from pipeline.workflow.paths import refusal
from pipeline.workflow.plan import Plan
from pipeline.workflow.unchanged import State

SNAKEFILE = CONFIGS.parent / "Snakefile"
STAGES = ("all", "fetch", "data", "train", "unlearn", "evaluate", "robustness", "judge", "report")
# Options of Snakemake that would replace what it is told here, with their short forms, and what is meant for that.
OWN = {
    "--config": "--set KEY=VALUE, --results, --data-root, --site and --image before -- say what it would",
    "--configfile": "--set KEY=VALUE before -- says what is to be different",
    "--configfiles": "--set KEY=VALUE before -- says what is to be different",
    "--profile": "--profile belongs before --",
}
SHORT_CONFIG = re.compile("-[nFfktpSDl]*C.*", re.DOTALL)  # also behind options of a letter that take no value
PROFILE_FILE = re.compile(r"(?:config|profile)(?:\.v(\d+)\+)?\.yaml")  # Snakemake's names, by its major version
LOOKS_ONLY = ("--dry-run", "--dryrun", "-n", "--summary", "-S", "--lint", "--list-rules", "--rulegraph", "--dag")

USAGE = """
unlearn run mini                              the experiment mini, on this machine
unlearn run my/experiment.yaml --profile slurm
unlearn run mini --set methods.blur-npo.rule.gamma=0.5 --set 'seeds=[0, 1]'
unlearn run mini --until train                stop when the models are trained
unlearn run mini -- --forcerun write_report   options of Snakemake go after --
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments to its parser."""
    add = parser.add_argument
    add_experiment(parser)
    add("--profile", default="local", help="local (default), slurm, or a folder with a profile of Snakemake")
    add("--until", choices=STAGES, default="all", metavar="STAGE", help=f"stop after that stage: {', '.join(STAGES)}")
    add("--site", type=Path, metavar="FILE", help="a cluster's file; default: site.yaml")
    add("--image", type=Path, metavar="FILE", help="container image of the steps; default: the site's")
    parser.usage = f"{parser.format_usage().removeprefix('usage: ').rstrip()} [-- OPTION OF SNAKEMAKE ...]"


def main(given: argparse.Namespace) -> int:
    """Run the experiment.

    Returns:
        The exit status: 0, 1 where a step failed, 2 for what cannot be asked for.
    """
    try:
        refused: list[str | None] = [*_replaced(given.further)]
        refused += [refusal(name.replace("_", "-"), path) for name, path in _paths(given).items()]
        if any(refused):
            raise ConfigError(list(filter(None, refused)))
        profile = _profile(given.profile)
        cluster = _executor(profile) != "local"
        plan, _ = planned(given, cluster)
        tracking = plan.config.experiment.tracking
        if tracking is not None and tracking.missing:
            raise ConfigError([tracking.missing])
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 2
    command = [given.until, "--snakefile", str(SNAKEFILE), "--profile", str(profile), *given.further]
    command += ["--config", *_options(given)]
    if any(option in LOOKS_ONLY for option in given.further):
        return _snakemake(command)
    try:
        held = runs.begin(plan.paths.root, _lost(plan), cluster)
    except Held as error:
        print(error, file=sys.stderr)
        return 2
    try:
        before = _state(given, plan, command, profile)
        if not given.further and before.is_known():
            return _nothing(plan)
        with beside(plan.config.experiment.tracking, plan.paths.root, plan.utility):
            status, worked = _watched(command, plan)
        if status or worked:
            return status
        if not given.further and _state(given, planned(given, cluster)[0], command, profile).digest == before.digest:
            before.keep()
        return _nothing(plan)
    finally:
        held.release()


def _paths(given: argparse.Namespace) -> dict[str, object]:
    """The paths of the command line, by the names of their options."""
    names = ("experiment", "data_root", "results", "site", "image")
    found = {name: getattr(given, name) for name in names}
    return {name: path for name, path in found.items() if path is not None}


def _options(given: argparse.Namespace) -> list[str]:
    """What ``--config`` is given. A path is a list of one text: Snakemake would read a folder ``2024_01`` as the number
    202401 and what follows a ``#`` not at all, and it takes off quotes before that."""
    options = {name: json.dumps([str(path)], ensure_ascii=False) for name, path in _paths(given).items()}
    options |= {"set": json.dumps(given.set)} if given.set else {}
    return [f"{name}={value}" for name, value in options.items()]


def _replaced(further: Sequence[str]) -> list[str]:
    """What is wrong with the options of Snakemake: each one that would replace what it is told here."""
    names = ["--config" if SHORT_CONFIG.fullmatch(word) else word.partition("=")[0] for word in further]
    return [
        f"{word}: not allowed after --: {OWN[name]}" for word, name in zip(further, names, strict=True) if name in OWN
    ]


def _profile(name: str) -> Path:
    for folder in (CONFIGS / "profiles" / name, Path(name)):
        if _settings(folder) is not None:
            return folder.absolute()
    known = sorted(folder.name for folder in (CONFIGS / "profiles").iterdir())
    raise ConfigError([f"--profile: {name!r} is no folder with a config.yaml, and none of {', '.join(known)}"])


def _settings(profile: Path) -> Path | None:
    """The file of a profile's folder that Snakemake reads: the one for its own or the closest earlier version."""
    if not profile.is_dir():
        return None
    major = int(version("snakemake").partition(".")[0])
    found = {file: int(named[1] or 0) for file in profile.iterdir() if (named := PROFILE_FILE.fullmatch(file.name))}
    return max((file for file in found if found[file] <= major and file.is_file()), key=found.__getitem__, default=None)


def _executor(profile: Path) -> str:
    """What runs the jobs of a profile: ``local`` for this machine; raises ``ConfigError`` where it cannot be read."""
    from snakemake.profiles import ProfileConfigFileParser  # which also fills templates in

    file = _settings(profile)
    assert file is not None, "_profile found it"
    try:
        with file.open(encoding="utf-8") as stream:
            return str(ProfileConfigFileParser().parse(stream).get("executor", "local"))
    except Exception as error:  # the parser's own, of Snakemake and of templates
        said = " ".join(str(error).split())
        raise ConfigError([f"--profile: {short(file)}: no profile of Snakemake: {said}"]) from None


def _state(given: argparse.Namespace, plan: Plan, command: list[str], profile: Path) -> State:
    """What decides whether there is anything to do."""
    file = _settings(profile)
    settings = "" if file is None else file.read_text(encoding="utf-8", errors="replace")
    return State(plan, site.load(site.find(given.site)), [*command, settings])


def _watched(command: list[str], plan: Plan) -> tuple[int, bool]:
    """Run Snakemake and show what it does; its exit status, and whether it had anything to do."""
    shown = progress.Progress(plan, sys.stderr)
    progress.use(shown)
    status = _snakemake(["--logger", progress.PLUGIN, "--nolock", *command])
    if status:
        print(f"logs of the steps: {plan.paths.root / 'logs'}", file=sys.stderr)
    return status, shown.total is not None


def _nothing(plan: Plan) -> int:
    """Say that there is nothing to do, and print the table, which no step has printed."""
    print("nothing to do: everything is there and nothing has changed", file=sys.stderr)
    if not (plan.paths.report / "table.md").is_file():
        return 0
    return subprocess.run([sys.executable, "-m", "pipeline.report", "--print", str(plan.paths.report)]).returncode


def _snakemake(command: list[str]) -> int:
    from snakemake.cli import main as snakemake

    try:
        snakemake(command)
    except SystemExit as error:
        return error.code if isinstance(error.code, int) else 1
    return 0


def _lost(plan: Plan) -> Callable[[], None]:
    def stop() -> None:
        print(f"{plan.paths.root}: another run has taken over; this one ends", file=sys.stderr)
        os.kill(os.getpid(), signal.SIGTERM)

    return stop
