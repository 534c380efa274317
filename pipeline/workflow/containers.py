"""The environment of containers, in one place: for Snakemake's own `apptainer exec` and for the launcher's.

The Snakefile puts it into `os.environ` wherever it is read: where the workflow is started, and again in every job, on
the node that runs it. Nothing else of the caller's environment or home folder is seen in a container.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable, MutableMapping
from pathlib import Path

from pipeline.benchmarks.lm_eval.options import LmEvalOptions
from pipeline.config.experiment import Config, Utility
from pipeline.config.located_yaml import ConfigError
from pipeline.config.named_files import CONFIGS
from pipeline.config.site import ROOT, Site
from pipeline.data.settings import FilesSource, FolderSource
from pipeline.launch.image import IMAGE, IMAGE_SHA256, INSIDE, image_sha256
from pipeline.launch.ranks import shielded
from pipeline.workflow.paths import refusal
from pipeline.workflow.plan import Plan

DRIVER = Path("/proc/driver/nvidia/version")
# Settings of the network, of GPU libraries and of the job, which a user or Slurm makes outside.
PASSED = ("CUDA_VISIBLE_DEVICES", "SLURM_JOB_ID", "SLURM_JOB_NODELIST", "SLURM_GPUS_ON_NODE", "SLURMD_NODENAME")
PASSED_PREFIXES = ("NCCL_", "TORCH_NCCL_", "GLOO_", "UCX_", "FI_", "PYTORCH_", "NVTE_", "CUBLAS_")
# Variables of containers that are set here.
SET = (
    "HF_HOME",
    "HF_HUB_CACHE",
    "HF_TOKEN_PATH",
    "HF_DATASETS_CACHE",
    "HF_HUB_OFFLINE",
    "PYTHONNOUSERSITE",
    "TMPDIR",
    IMAGE,
    IMAGE_SHA256,
)
TOKENS = ("token", "stored_tokens")  # of the hub, in `HF_HOME`, of which containers see only what has been fetched


def environment(site: Site, plan: Plan, image: Path) -> dict[str, str]:
    """Variables for Apptainer, with the `PATH` that it is to have, and by `APPTAINERENV_` those of every container.

    Raises ``ConfigError`` where a folder's name cannot be written in a list of binds, or the image's or the working
    directory's not in Snakemake's command line.
    """
    named = {"image": image, "the working directory": Path.cwd()}
    wrong = [problem for what, path in named.items() if (problem := refusal(what, path))]
    if wrong:
        raise ConfigError(wrong)
    temporary = tempfile.gettempdir()
    inside = {name: value for name, value in os.environ.items() if name.startswith(PASSED_PREFIXES)}
    inside |= {name: os.environ[name] for name in PASSED if name in os.environ}
    inside |= {
        "HF_HOME": str(site.huggingface),
        "HF_HUB_CACHE": str(site.hub),
        **({"HF_DATASETS_CACHE": str(site.datasets)} if site.datasets.is_dir() else {}),
        "HF_TOKEN_PATH": "/nonexistent/token",
        "HF_HUB_OFFLINE": "1",
        "PYTHONNOUSERSITE": "1",
        "TMPDIR": temporary,
        IMAGE: str(image),
    }
    inside.setdefault("NCCL_DEBUG", "WARN")
    digest = image_sha256(image)
    if digest:
        inside[IMAGE_SHA256] = digest
    # Processes, shared memory, devices and temporary folders of their own, but for what is bound.
    found = {"APPTAINER_CONTAINALL": "1", "APPTAINER_CLEANENV": "1", "APPTAINER_BIND": ",".join(binds(site, plan))}
    found["PATH"] = shielded(os.environ.get("PATH", os.defpath))
    if DRIVER.exists():
        found["APPTAINER_NV"] = "1"
    if os.geteuid() == 0:
        found["APPTAINER_USERNS"] = "1"  # root may lack capabilities that Apptainer wants, as in a container
    return found | {f"{INSIDE}{name}": value for name, value in inside.items()}


def enter(variables: dict[str, str], environ: MutableMapping[str, str] = os.environ) -> None:
    """Put ``variables`` into ``environ``; what another node left there of them, from which a job inherits, goes."""
    for name in [*environ]:
        own = name.removeprefix(INSIDE)
        if name == "APPTAINER_NV" or (own != name and (own in (*SET, *PASSED) or own.startswith(PASSED_PREFIXES))):
            del environ[name]
    environ.update(variables)


def binds(site: Site, plan: Plan) -> list[str]:
    """What containers see of the file system: absolute, there, and none inside another.

    The clone, the working directory, results, the user's own data, what has been fetched from the hub, the folder for
    temporary files, the site's `binds`, and what `APPTAINER_BIND` already names. Of a symbolic link, both its path and
    its target. Results that are not there yet are made in the nearest folder that is. Where the hub's token lies in one
    of these folders, there is nothing to read in its place.
    """
    written = [folder for folder in (plan.paths.root, plan.paths.cache) if folder is not None]
    folders = [ROOT, Path.cwd(), *map(_nearest, written), Path(tempfile.gettempdir())]
    folders += [site.hub, site.datasets]
    asked: list[Config | Utility] = [plan.config, *plan.config.utility]
    for one in asked:
        folders += [one.source.path] if isinstance(one.source, FolderSource) else []
        tasks = one.options.include_path if isinstance(one.options, LmEvalOptions) else None
        folders += [CONFIGS / tasks] if tasks is not None else []
    if isinstance(plan.config.source, FilesSource):
        sets = plan.config.source.sets.values()
        given = [one.path if one.own_answers is None else one.own_answers.prompts for one in sets]
        folders += [path if path.is_dir() else path.parent for path in given if path is not None]
    plain = {str(each): None for folder in folders for each in (os.path.abspath(folder), folder.resolve())}
    mapped: dict[str, None] = {}
    for text in [*os.environ.get("APPTAINER_BIND", "").split(","), *site.binds]:
        (mapped if ":" in text else plain)[text] = None
    there = [path for path in plain if path not in ("", "/") and Path(path).exists()]
    outer = [path for path in there if not _below(path, [other for other in there if other != path])]
    covered = [str(path) for path in _tokens(site) if path.exists() and _below(str(path), outer)]
    wrong = [path for path in (*plain, *covered) if "," in path or (":" in path)]
    if wrong:
        raise ConfigError([f"{path!r}: Apptainer cannot bind a path that has ',' or ':'" for path in wrong])
    mapped |= {f"/dev/null:{path}": None for path in covered}
    return [*outer, *(text for text in mapped if Path(text.partition(":")[0]).exists())]


def _tokens(site: Site) -> list[Path]:
    """Where the hub's tokens may lie: in its folder, and where ``HF_TOKEN_PATH`` says."""
    found = [site.huggingface / name for name in TOKENS]
    if given := os.environ.get("HF_TOKEN_PATH"):
        token = Path(os.path.expandvars(os.path.expanduser(given))).absolute()
        found += [token, token.with_name(TOKENS[1])]
    return [path.parent.resolve() / path.name for path in found]


def _nearest(folder: Path) -> Path:
    folder = folder.absolute()
    return next(path for path in (folder, *folder.parents) if path.exists())


def _below(path: str, folders: Iterable[str]) -> bool:
    return any(Path(path).is_relative_to(folder) for folder in folders)
