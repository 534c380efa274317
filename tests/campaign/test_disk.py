"""The layer of faults under a disk, and one fault that meets a step; ``python -m tests.campaign disk`` has many."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.campaign import disk

# Writes a file of 100 bytes in two parts under a temporary name, renames it, and reads it.
PROGRAM = """
import os, sys
path = sys.argv[1]
file = os.open(path + ".new", os.O_WRONLY | os.O_CREAT)
os.write(file, b"x" * 50)
os.write(file, b"x" * 50)
os.fsync(file)
os.rename(path + ".new", path)
print(len(open(path).read()))
"""


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    built = disk.built(tmp_path_factory.mktemp("layer"))
    if built is None:
        pytest.skip("no C compiler")
    return built


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "first", "once", "said", "written"),
    [
        ("full", 99, False, "100", 100),
        ("full", 1, False, "No space left on device", None),
        ("full", 3, False, "No space left on device: '", 75),  # half of a part was written, and nobody looked
        ("full", 2, True, "75", 75),
        ("broken", 4, False, "Input/output error", 100),
        ("read-only", 1, False, "Read-only file system", None),
        ("slow", 1, False, "100", 100),
    ],
)
def test_the_layer_does_what_such_a_disk_does(
    library: Path, tmp_path: Path, kind: str, first: int, once: bool, said: str, written: int | None
) -> None:
    """Else a campaign on it would prove nothing."""
    below = tmp_path / "below"
    below.mkdir()
    command = [sys.executable, "-IS", "-c", PROGRAM, str(below / "file")]
    ended = disk.Disk(library, below).run(command, tmp_path, disk.Fault(kind, first, once))
    assert said in ended.printed, ended
    assert [path.stat().st_size for path in below.iterdir()] == ([] if written is None else [written])


@pytest.mark.slow
def test_a_copy_meets_a_full_disk_too(library: Path, tmp_path: Path) -> None:
    """Its file can be made, and its bytes have no room: they pass by no `write`."""
    below = tmp_path / "below"
    below.mkdir()
    (tmp_path / "source").write_bytes(b"x" * 100)
    program = "import shutil, sys; shutil.copyfile(*sys.argv[1:])"
    command = [sys.executable, "-IS", "-c", program, str(tmp_path / "source"), str(below / "file")]
    ended = disk.Disk(library, below).run(command, tmp_path, disk.Fault("full", 2))
    assert ended.status and "No space left on device" in ended.printed and ended.operations == 2, ended


@pytest.mark.slow
def test_a_full_disk_under_a_step_is_told_and_leaves_nothing(library: Path, tmp_path: Path) -> None:
    """The short form of the campaign: a whole step, from its command to the same bits after room was made."""
    world = disk.World(tmp_path, library, only=["data/tiny"])
    places = world.operations("data/tiny", "full")
    assert places > 10
    assert world.wrong("data/tiny", disk.Fault("full", places * 2 // 3)) is None
