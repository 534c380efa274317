"""The folder for what libraries keep: never one that somebody else could have prepared."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from pipeline.launch import private_folder

NAME = f"unlearn-{os.geteuid()}"
VARIABLES = (*private_folder.ALWAYS, *private_folder.IN_CONTAINERS)


@pytest.fixture(autouse=True)
def tmp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder for temporary files, and no variable of a library."""
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(private_folder.tempfile, "gettempdir", lambda: str(tmp_path / "tmp"))
    monkeypatch.setattr(private_folder.tempfile, "tempdir", str(tmp_path / "tmp"))
    for name in VARIABLES:
        monkeypatch.setenv(name, "")  # so that what a test sets goes
        monkeypatch.delenv(name)
    return tmp_path / "tmp"


def alone(folder: Path) -> bool:
    found = folder.lstat()
    return (stat.S_ISDIR(found.st_mode), stat.S_IMODE(found.st_mode), found.st_uid) == (True, 0o700, os.geteuid())


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077])
def test_it_is_the_users_alone_and_stays(tmp: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        folder = private_folder.private_folder()
    finally:
        os.umask(before)
    assert folder == tmp / NAME and alone(folder)
    (folder / "compiled").touch()
    assert private_folder.private_folder() == folder and (folder / "compiled").exists()


def plant(planted: Path, how: str) -> None:
    """What another user can make at the name beforehand."""
    other = planted.parent / "other"
    other.mkdir(mode=0o700)
    if how == "a file":
        planted.touch()
    elif how == "a link to a folder":
        planted.symlink_to(other)
    elif how == "a link to nothing":
        planted.symlink_to(other / "none")
    else:
        planted.mkdir()
        planted.chmod(0o700 if how == "of another user" else int(how, 8))
    if how == "of another user":
        if os.geteuid() != 0:
            pytest.skip("only root can give a folder away")
        os.chown(planted, 12345, 12345)


@pytest.mark.parametrize(
    "how", ["of another user", "755", "770", "1777", "710", "701", "a file", "a link to a folder", "a link to nothing"]
)
def test_what_somebody_else_may_have_made_is_not_used(tmp: Path, how: str) -> None:
    plant(tmp / NAME, how)
    folder = private_folder.private_folder()
    assert folder.parent == tmp and folder.name != NAME and folder.resolve() != tmp / "other"
    assert alone(folder) and not list(folder.iterdir())


def test_libraries_get_folders_in_it(tmp: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", "/my/own")
    private_folder.set_folders(in_container=False)
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == str(tmp / NAME / "torchinductor")
    assert "XDG_CONFIG_HOME" not in os.environ, "a user's own, outside of containers"
    private_folder.set_folders(in_container=True)
    others = {name: os.environ[name] for name in private_folder.IN_CONTAINERS}
    assert others.pop("TRITON_CACHE_DIR") == "/my/own"
    assert (
        all(Path(each).parent == tmp / NAME for each in others.values())
        and len(set(others.values())) == len(others) == 5
    )
