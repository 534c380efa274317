"""Files that appear whole, with the caller's modes, and never through somebody else's link."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from megatron_ext import atomic_files
from megatron_ext.atomic_files import (
    new_folder,
    remove_leftovers,
    replacing_file,
    temporary_name,
    write_json,
    write_text,
)
from megatron_ext.data.sequences import save_arrays

WRITERS: dict[str, Callable[[Path], None]] = {
    "text": lambda path: write_text(path, "new"),
    "json": lambda path: write_json(path, {"new": 1}),
    "npz": lambda path: save_arrays(path, new=np.arange(3)),
    "folder": lambda path: new_folder(path).rename(path),
}


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_what_dead_writers_left_is_removed_and_nothing_else(tmp_path: Path) -> None:
    """Names of other kinds, hidden ones too, and what a link leads to, stay."""
    kept = [tmp_path / name for name in (".running.json", ".step-00000001", "model.0123456789abcdef", "inside/file")]
    for path in [*kept, temporary_name(kept[0]), temporary_name(kept[3]), new_folder(tmp_path / "made") / "file"]:
        path.parent.mkdir(exist_ok=True)
        path.touch()
    temporary_name(tmp_path / "link").symlink_to(tmp_path / "inside")
    remove_leftovers(tmp_path)
    assert {path for path in tmp_path.rglob("*") if not path.is_dir()} == set(kept)


@pytest.mark.parametrize("writer", WRITERS)
@pytest.mark.parametrize("umask", [0o022, 0o002, 0o077, 0o027])
def test_modes_are_what_the_umask_leaves(tmp_path: Path, writer: str, umask: int) -> None:
    before = os.umask(umask)
    try:
        WRITERS[writer](tmp_path / "made" / "file")
    finally:
        os.umask(before)
    whole = 0o777 if writer == "folder" else 0o666
    assert stat.S_IMODE((tmp_path / "made" / "file").stat().st_mode) == whole & ~umask
    assert names(tmp_path / "made") == ["file"]


def test_a_link_that_was_planted_is_not_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At the name with this process's number, which was taken before, and at the name that is really chosen."""
    victim = tmp_path / "victim"
    victim.write_text("mine")
    (tmp_path / f".out.{os.getpid()}").symlink_to(victim)
    write_text(tmp_path / "out", "new")
    assert (victim.read_text(), (tmp_path / "out").read_text()) == ("mine", "new")
    monkeypatch.setattr(atomic_files.secrets, "token_hex", lambda _: "guessed")
    for target in (victim, tmp_path / "nothing"):
        (tmp_path / ".out.guessed").unlink(missing_ok=True)
        (tmp_path / ".out.guessed").symlink_to(target)
        with pytest.raises(FileExistsError):
            write_text(tmp_path / "out", "newer")
    assert victim.read_text() == "mine" and not (tmp_path / "nothing").exists()
    assert (tmp_path / "out").read_text() == "new"


def test_a_link_at_the_place_itself_is_replaced(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("mine")
    (tmp_path / "out").symlink_to(victim)
    write_text(tmp_path / "out", "new")
    assert victim.read_text() == "mine" and not (tmp_path / "out").is_symlink()


def test_after_an_error_the_old_file_is_there_and_nothing_else(tmp_path: Path) -> None:
    write_text(tmp_path / "out", "old")
    with pytest.raises(ZeroDivisionError), replacing_file(tmp_path / "out") as file:
        file.write(b"half")
        raise ZeroDivisionError
    assert (names(tmp_path), (tmp_path / "out").read_text()) == (["out"], "old")


def test_names_differ_and_are_hidden(tmp_path: Path) -> None:
    found = {atomic_files.temporary_name(tmp_path / "out") for _ in range(100)}
    assert len(found) == 100 and all(path.name.startswith(".out.") and path.parent == tmp_path for path in found)
