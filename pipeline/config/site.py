"""What a cluster is like and what its users choose there: ``site.yaml`` at the top of the clone.

``workflow_configs/site.example.yaml`` shows every key. Nothing here decides a result, so a change of the file reruns
nothing; another image does.
"""

from __future__ import annotations

import os
import re
import shlex
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, field_validator

from megatron_ext.schema import Strict
from pipeline.config.located_yaml import ConfigError, check, read, short

ROOT = Path(__file__).resolve().parents[2]
FILE = ROOT / "site.yaml"

# What sbatch is told by other keys, or by Snakemake itself, and the key where there is one.
MANAGED = {
    ("--partition", "-p"): "partition",
    ("--account", "-A"): "account",
    ("--qos", "-q"): "qos",
    ("--constraint", "-C"): "constraint",
    ("--gres", "--gpus", "-G", "--gpus-per-node", "--ntasks-per-gpu", "--cpus-per-gpu"): "gpus_per_node",
    ("--signal",): "warn_seconds",
    ("--time", "-t"): "time_factor",
    ("--mem", "--mem-per-cpu", "--mem-per-gpu"): "memory_per_node_mb",
    ("--nodes", "-N", "--ntasks", "-n", "--ntasks-per-node", "--cpus-per-task", "-c"): None,
    ("--job-name", "-J", "--output", "-o", "--error", "-e", "--parsable", "--export", "--comment"): None,
    ("--chdir", "--workdir", "-D", "--clusters", "-M", "--array", "-a", "--wrap"): None,
}

Word = Annotated[str, Field(pattern=r"^[^\s'\"]+$", description="one word")]


class Site(Strict):
    """Of ``image``, ``binds`` and ``hf_home``: ``~`` and ``$VARIABLE`` are replaced, and a relative path starts at the
    folder of the site file."""

    partition: Word | None = None
    account: Word | None = None
    qos: Word | None = None
    constraint: str | None = Field(None, min_length=1)
    extra: str = Field("", description="further options of sbatch, as on a command line")
    gpus_per_node: int = Field(8, ge=0, description="0: jobs run on CPUs")
    gpu_type: str | None = Field(None, pattern=r"^[A-Za-z0-9_.]+$", description="as in --gres=gpu:TYPE:N")
    cpus_per_node: int | None = Field(None, ge=1)
    memory_per_node_mb: int | None = Field(None, ge=1)
    image: Path | None = Field(None, strict=False)
    require_current_image: bool = Field(False, description="an image of another checkout is refused")
    binds: list[str] = Field([], description="folders that steps see in the image; also SOURCE:TARGET[:ro]")
    hf_home: Path | None = Field(None, strict=False, description="default: that of the hub's library, such as $HF_HOME")
    time_factor: float = Field(1.0, gt=0, le=100)
    warn_seconds: int = Field(120, ge=10, le=3600, description="jobs are told to stop that long before the limit")

    @field_validator("extra")
    @classmethod
    def _own_options(cls, extra: str) -> str:
        try:
            words = shlex.split(extra)
        except ValueError as error:
            raise ValueError(f"{extra!r} is not a command line: {error}") from None
        for word in words:
            option = word.partition("=")[0]
            for names, key in MANAGED.items():
                if option in names or any(len(n) == 2 and word.startswith(n) for n in names if word[1:2] != "-"):
                    instead = f"set '{key}' instead" if key else "the workflow sets it"
                    raise ValueError(f"{word!r} is not allowed: {instead}")
        return shlex.join(words)

    @property
    def huggingface(self) -> Path:
        """The folder of models and data sets that were fetched: the libraries' own, unless ``hf_home`` says it."""
        default = os.path.join(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "huggingface")
        return self.hf_home or _folder(os.environ.get("HF_HOME") or default)

    @property
    def hub(self) -> Path:
        """The folder of what was fetched from the hub; ``hf_home`` goes over what the environment says of it."""
        return self._cache("hub", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE")

    @property
    def datasets(self) -> Path:
        """The folder of the data sets that the library ``datasets`` keeps."""
        return self._cache("datasets", "HF_DATASETS_CACHE")

    def _cache(self, name: str, *variables: str) -> Path:
        given = [] if self.hf_home else [os.environ[key] for key in variables if os.environ.get(key)]
        return _folder(given[0]) if given else self.huggingface / name


def find(option: object = None) -> Path | None:
    """The site file: the one that was asked for, else ``site.yaml`` at the top of the clone, where there is one."""
    if option is not None:
        return Path(str(option)).expanduser()
    return FILE if FILE.is_file() else None


def load(path: Path | None) -> Site:
    """The site of that file, or one with every default; raises ``ConfigError`` with everything that is wrong."""
    if path is None:
        return Site()
    document = read(path, empty=True)
    problems: list[str] = []
    site: Site | None = check(Site, document, problems)
    if site is None:
        raise ConfigError(problems)
    paths: dict[str, Any] = {}
    for key, index, text in _paths(site):
        try:
            expanded = _expanded(text, Path(path).absolute().parent)
        except KeyError as error:
            where = (key,) if index is None else (key, index)
            problems.append(document.problem(where, f"{text!r}: the variable {error.args[0]} is not set"))
            continue
        if index is None:
            paths[key] = Path(expanded)
        else:
            paths.setdefault(key, []).append(expanded)
    if problems:
        raise ConfigError(problems)
    return site.model_copy(update=paths)


def named(path: Path | None) -> str:
    """How messages call the site file."""
    return short(path) if path else "site.yaml (there is none)"


def _folder(text: str) -> Path:
    """A folder of the environment, as the hub's library reads it."""
    return Path(os.path.expandvars(os.path.expanduser(text))).absolute()


def _paths(site: Site) -> list[tuple[str, int | None, str]]:
    """Key, index in a list, and text of every path that is given."""
    single = [("image", site.image), ("hf_home", site.hf_home)]
    found = [(key, None, str(path)) for key, path in single if path is not None]
    return [*found, *(("binds", i, text) for i, text in enumerate(site.binds))]


def _expanded(text: str, folder: Path) -> str:
    """An absolute path; raises ``KeyError`` with the name of a variable that is not set."""
    replaced: str = re.sub(r"\$\{?(\w+)\}?", lambda match: os.environ[match.group(1)], text)
    return os.path.normpath(folder / os.path.expanduser(replaced))
