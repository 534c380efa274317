"""The two definitions: one way of filling, testing and entering both images, and nothing of a particular machine."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from tests.containers.scripts import FOLDER, load

KINDS = ("cpu", "gpu")
INSTALL = "python3 /opt/unlearn/source/containers/install"


def text(kind: str) -> str:
    return (FOLDER / f"unlearn-{kind}.def").read_text(encoding="utf-8")


def sections(kind: str) -> dict[str, list[str]]:
    """Lines of each section, comments left out, continued lines joined; ``""`` is the header."""
    found: dict[str, list[str]] = {"": []}
    name = ""
    for line in text(kind).replace("\\\n", "").splitlines():
        if line.startswith("%"):
            name = line[1:].strip()
            assert name not in found, f"%{name} twice"
            found[name] = []
        elif line.strip() and not line.startswith("#"):
            found[name].append(" ".join(line.split()))
    return found


def header(kind: str) -> dict[str, str]:
    return dict(line.split(": ", 1) for line in sections(kind)[""])


@pytest.mark.parametrize("kind", KINDS)
def test_sections(kind: str) -> None:
    found = sections(kind)
    assert {"files", "post", "environment", "test", "runscript", "labels", "help"} <= set(found)
    assert all(found.values()), "a section is empty"
    assert "export PYTHONNOUSERSITE=1" in found["environment"]
    assert f"unlearn.kind {kind}" in found["labels"]
    assert found["post"][0] == "set -eu"


@pytest.mark.parametrize("kind", KINDS)
def test_sources_may_lie_in_a_folder_with_a_space(kind: str) -> None:
    """As under a TMPDIR of that kind; Apptainer would take its halves for two files."""
    (line,) = sections(kind)["files"]
    assert shlex.split(line.replace("{{ SOURCE }}", "/my files/source")) == ["/my files/source", "/opt/unlearn/source"]


def test_bases() -> None:
    cpu, gpu = header("cpu"), header("gpu")
    assert (cpu["Bootstrap"], cpu["OSVersion"], cpu["MirrorURL"]) == ("debootstrap", "bookworm", "{{ MIRROR }}")
    assert {"python3", "python3-pip", "ca-certificates"} <= set(cpu["Include"].split())
    assert (gpu["Bootstrap"], gpu["From"]) == ("docker", "{{ BASE }}")
    assert re.fullmatch(r"BASE=nvcr\.io/nvidia/pytorch:\d\d\.\d\d-py3", *sections("gpu")["arguments"])


def test_the_python_part_is_the_same() -> None:
    cpu, gpu = sections("cpu"), sections("gpu")
    for name in ("files", "environment", "test", "runscript"):
        assert cpu[name] == gpu[name], name
    calls = {kind: [line for line in sections(kind)["post"] if line.startswith(INSTALL)] for kind in KINDS}
    assert len(calls["cpu"]) == 1
    kept = " --keep torch --keep transformer-engine --keep apex"
    assert [line + kept for line in calls["cpu"]] == calls["gpu"]
    for kind in KINDS:  # nothing is installed past the shared script
        others = [line for line in sections(kind)["post"] if not line.startswith(INSTALL)]
        assert all(line == "set -eu" or line.startswith("rm -") for line in others), others


@pytest.mark.parametrize("kind", KINDS)
def test_the_script_takes_the_install_line(kind: str) -> None:
    (line,) = (line for line in sections(kind)["post"] if line.startswith(INSTALL))
    given = load("install").arguments(shlex.split(line)[2:])
    assert (given.source, given.into) == (Path("/opt/unlearn/source"), Path("/opt/unlearn"))
    assert given.pip_config == Path(load("build").MOUNT, "pip.conf")
    assert given.keep == ([] if kind == "cpu" else ["torch", "transformer-engine", "apex"])


@pytest.mark.parametrize("kind", KINDS)
def test_every_argument_is_given_by_the_build_or_has_a_default(kind: str) -> None:
    used = set(re.findall(r"\{\{ (\w+) \}\}", text(kind)))
    assert used == {"SOURCE", "CONTENT", "MIRROR" if kind == "cpu" else "BASE"}
    assert text(kind).count("{{") == len(re.findall(r"\{\{ \w+ \}\}", text(kind)))


@pytest.mark.parametrize("name", ["unlearn-cpu.def", "unlearn-gpu.def", "install", "check", "build"])
def test_no_host_is_named_but_the_public_image_s(name: str) -> None:
    lines = (FOLDER / name).read_text(encoding="utf-8").splitlines()
    hosts = [host for line in lines for host in re.findall(r"\b[\w-]+\.(?:org|com|io|net|dev|ai|edu)\b(?:/\S+)?", line)]
    allowed = {"nvcr.io/nvidia/pytorch:25.12-py3"} if name == "unlearn-gpu.def" else set()
    if name == "build":
        allowed = {"apptainer.org/docs"}
    assert set(hosts) == allowed
