"""Whether Slurm takes jobs as the site's file describes them, asked before any job is submitted."""

from __future__ import annotations

import shlex
import subprocess

from pipeline.config.located_yaml import hint
from pipeline.config.site import Site

PATIENCE = 60  # seconds


def refusal(here: Site) -> str | None:
    """What Slurm has against the site's partition, account, QOS, constraint and further options; ``None``: nothing."""
    try:
        listed = _ask("sinfo", "--noheader", "--format=%R")
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"sinfo: {error}. Slurm's commands must work where the workflow is started"
    if listed.returncode:
        return f"sinfo: {listed.stderr.strip()}"
    known = sorted(set(listed.stdout.split()))
    if here.partition is not None and (wrong := [name for name in here.partition.split(",") if name not in known]):
        return f"site.yaml: partition: Slurm has no {wrong[0]!r}{hint(wrong[0], known)}"
    named = {name: getattr(here, name) for name in ("partition", "account", "qos", "constraint")}
    options = [f"--{name}={value}" for name, value in named.items() if value is not None]
    options += shlex.split(here.extra)
    if not options:
        return None
    try:
        tried = _ask("sbatch", "--test-only", *options, "--ntasks=1", "--time=1", "--wrap=true")
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"sbatch: {error}. Slurm's commands must work where the workflow is started"
    if tried.returncode:
        said = " ".join(tried.stderr.split())
        return f"site.yaml: Slurm takes no job with {shlex.join(options)}: {said}"
    return None


def _ask(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
