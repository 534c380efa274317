"""The SHA-256 of every file of the packages in ``constraints.txt``: ``python -m tests.support.hashes --write``.

uv, which must be on PATH, asks the indexes that this machine is configured for. Kept are wheels for Linux on x86-64 and
ARM64 and CPython 3.11 to 3.13, and sources of packages without wheels. Of torch, builds for CPUs alone are kept, each
with the Python and the processor that it is for: others, on ARM64 too, need packages of CUDA, which ``constraints.txt``
does not pin. Such a build is in an index of its own or a folder (``UV_INDEX`` or ``UV_FIND_LINKS``). Without
``--write``, versions are compared with ``constraints.txt``.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
PINNED, HASHED = ROOT / "constraints.txt", ROOT / "constraints-hashed.txt"
HEAD = """\
# The packages of constraints.txt with the SHA-256 of each file that may be installed: wheels for Linux on x86-64 and
# ARM64 and CPython 3.11 to 3.13, or sources where there are none. From `python -m tests.support.hashes --write`.
# Each part needs those before it; containers/packages installs up to one of them.
"""
# Parts of the file: what the project needs with these extras. Packages of no part belong to the last one.
PARTS: dict[str, tuple[str, ...]] = {
    "core": (),
    "steps": ("steps",),
    "work": ("steps", "dev", "docs", "sign"),
    "trackers": ("steps", "dev", "docs", "sign", "tensorboard", "mlflow", "wandb"),
}
BUILDS = "setuptools"  # of this project and of packages without a wheel
PYTHON = "3.11.0"  # the lowest one of pyproject.toml
WHEEL = re.compile(
    r".*-(py2\.py3|py3|py31[123]|cp3\d+-abi3|cp31[123]-cp31[123])(-none)?-(any|\S*linux\S*_(x86_64|aarch64))\.whl"
)
BUILD = re.compile(r".*-cp3(\d+)-cp\d+-\S*_(x86_64|aarch64)\.whl")  # of torch: a Python and a processor each


def uv(*words: str | Path, text: str = "") -> str:
    """What ``uv pip compile`` prints, for every platform, in the versions of ``constraints.txt``."""
    options = ["--universal", "--python-version", PYTHON, "--no-header", "--no-annotate", "--quiet"]
    command = ["uv", "pip", "compile", *words, *options]
    return subprocess.run(command, check=True, cwd=ROOT, input=text, stdout=subprocess.PIPE, text=True).stdout


def closure(extras: tuple[str, ...]) -> set[str]:
    """The packages that the project needs with ``extras``."""
    options = [word for extra in extras for word in ("--extra", extra)]
    printed = uv("pyproject.toml", *options, "--constraint", PINNED)
    return {normalise(line.partition("==")[0]) for line in printed.splitlines()} | {BUILDS}


def files(package: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Digest and name of a package's files that may be installed: wheels, or the sources where there is none at all."""
    for one in package.get("wheels", []):
        name = (one.get("name") or str(one.get("url") or one["path"]).rpartition("/")[2]).replace("%2B", "+")
        if WHEEL.fullmatch(name):
            yield one["hashes"]["sha256"], name
    if not package.get("wheels"):
        yield package["sdist"]["hashes"]["sha256"], "sources"


def found() -> str:
    """The text of the file, by asking uv."""
    lock = tomllib.loads(uv(PINNED, "--no-deps", "--format", "pylock.toml"))
    digests: dict[str, dict[str, str]] = {}
    for package in lock["packages"]:
        if package["name"] != "torch" or package["version"].endswith("+cpu"):
            digests.setdefault(package["name"], {}).update(files(package))
    if "torch" not in digests:
        sys.exit("no build of torch for CPUs was found: name its index by UV_INDEX, or a folder by UV_FIND_LINKS")
    return text(digests, {part: closure(extras) for part, extras in PARTS.items()})


def text(digests: dict[str, dict[str, str]], needs: dict[str, set[str]]) -> str:
    """The text of the file for digests and file names by package, and packages by part."""
    left, lines = pins(PINNED), [HEAD]
    for part, names in needs.items():
        last = part == list(needs)[-1]
        lines.append(f"# part: {part}\n")
        for name in [name for name in left if name in names or last]:
            hashes = "".join(f" \\\n    --hash=sha256:{digest}" for digest in sorted(digests[name]))
            build = f"+cpu ; {marker(digests[name].values())}" if name == "torch" else ""
            lines.append(f"{name}=={left.pop(name)}{build}{hashes}\n")
    return "".join(lines)


def marker(wheels: Iterable[str]) -> str:
    """Where one of torch's wheels can be installed, as requirements say it."""
    builds = sorted({match.groups() for name in wheels if (match := BUILD.fullmatch(name))})
    return " or ".join(
        f'(python_version == "3.{python}" and platform_machine == "{machine}")' for python, machine in builds
    )


def pins(file: Path) -> dict[str, str]:
    """The versions that a file pins, by the packages' names; without a build's local name (``+cpu``)."""
    lines = re.findall(r"^([\w.-]+)==([^\s\\+]+)", file.read_text(encoding="utf-8"), re.MULTILINE)
    return {normalise(name): version for name, version in lines}


def normalise(name: str) -> str:
    """A package's name as indexes have it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def main(arguments: list[str]) -> None:
    """Compare the file with ``constraints.txt``, or write it."""
    if arguments == ["--write"]:
        HASHED.write_text(found(), encoding="utf-8")
    elif pins(HASHED) != pins(PINNED):
        sys.exit(f"{HASHED.name} is not of {PINNED.name}: `python -m tests.support.hashes --write` makes it anew")


if __name__ == "__main__":
    main(sys.argv[1:])
