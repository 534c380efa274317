"""The hub's local cache is used as it is; what cannot be had is said in one line, without a token."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from huggingface_hub import errors

from pipeline.hub.download import HubError, place, snapshot

COMMIT = "0123456789abcdef0123456789abcdef01234567"
RESPONSE: Any = SimpleNamespace(headers={}, request=None, status_code=403)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The hub's cache with one file of a data set's commit, and no connection."""
    repository = tmp_path / "hub" / "datasets--some--set"
    (repository / "blobs").mkdir(parents=True)
    (repository / "blobs" / "abc").write_text("{}")
    (repository / "snapshots" / COMMIT).mkdir(parents=True)
    (repository / "snapshots" / COMMIT / "full.json").symlink_to("../../blobs/abc")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "token"))
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path / "hub"


def failing(monkeypatch: pytest.MonkeyPatch, error: Exception) -> str:
    """The message for an error of the library's."""

    def download(*_: Any, **__: Any) -> str:
        raise error

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    with pytest.raises(HubError) as caught:
        snapshot("some/set", "v1", ["full.json"], "dataset")
    return str(caught.value)


@pytest.mark.parametrize("revision", ["main", COMMIT, None])
def test_what_the_cache_holds_needs_no_connection(cache: Path, revision: str | None) -> None:
    folder, commit = snapshot("some/set", revision, ["full.json"], "dataset")
    assert commit == COMMIT and (folder / "full.json").read_text() == "{}"
    assert folder.is_relative_to(cache)


@pytest.mark.parametrize(("repository", "revision"), [("some/other", "main"), ("some/set", "v2")])
def test_what_it_does_not_hold_is_an_error_that_names_the_cache(cache: Path, repository: str, revision: str) -> None:
    with pytest.raises(HubError) as caught:
        snapshot(repository, revision, ["full.json"], "dataset")
    expected = f"hub: dataset {repository!r} at revision {revision!r}: HF_HUB_OFFLINE is set and the cache {cache} does"
    assert str(caught.value) == f"{expected} not hold it"


def test_a_half_loaded_snapshot_is_an_error(cache: Path) -> None:
    """The library's list of a commit's files, written when a download began, tells that some are missing."""
    trees = cache / "datasets--some--set" / "trees"
    trees.mkdir()
    files = '{"full.json": {"size": 2, "blob_id": "a"}, "forget10.json": {"size": 2, "blob_id": "b"}}'
    (trees / f"{COMMIT}.json").write_text(f'{{"format_version": 1, "files": {files}}}')
    with pytest.raises(HubError, match="holds only a part of it"):
        snapshot("some/set", "main", ["full.json", "forget10.json"], "dataset")


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (errors.GatedRepoError("403", response=RESPONSE), "gated and no token is set. Ask for access on"),
        (errors.RevisionNotFoundError("404", response=RESPONSE), "it has no such revision"),
        (errors.RepositoryNotFoundError("404", response=RESPONSE), "or it is private and no token is set"),
        (
            errors.LocalEntryNotFoundError("Got: ConnectError"),
            "the hub cannot be reached (LocalEntryNotFoundError",
        ),
        (
            errors.HFValidationError("Repo id must be"),
            "not a repository's name, which is 'owner/name': Repo id",
        ),
        (OSError(errno.ENOSPC, "No space left"), "no space is left for"),
        (PermissionError(errno.EACCES, "Permission denied", "/x"), "hf_home in site.yaml, names another place"),
        (RuntimeError("odd\nlong"), "RuntimeError: odd"),
    ],
)
def test_each_failure_in_its_own_words(monkeypatch: pytest.MonkeyPatch, error: Exception, message: str) -> None:
    found = failing(monkeypatch, error)
    assert message in found and found.startswith("hub: dataset 'some/set' at revision 'v1': ")
    assert "\n" not in found


def test_without_a_connection_the_network_error_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    error = errors.LocalEntryNotFoundError("Got: ...")
    error.__cause__ = OSError("Name or service not known")
    assert "cannot be reached (OSError: Name or service not known) and the cache" in failing(monkeypatch, error)


def test_a_token_without_access_is_told_apart_and_never_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "secret-of-another-form")
    gated = errors.GatedRepoError("403", response=RESPONSE)
    assert "gated, and the token that is set has no access" in failing(monkeypatch, gated)
    private = errors.RepositoryNotFoundError("404", response=RESPONSE)
    assert "private and the token that is set has no access" in failing(monkeypatch, private)
    found = failing(monkeypatch, RuntimeError("bad header: Bearer secret-of-another-form, hf_abcdefghijklmnop"))
    assert found.endswith("RuntimeError: bad header: Bearer hf_***, hf_***")


def test_placed_files_are_links_and_replace_what_was_there(tmp_path: Path) -> None:
    (tmp_path / "blob").write_text("new")
    (tmp_path / "name").symlink_to("blob")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "old").write_text("")
    (tmp_path / ".out.killed").mkdir()
    assert place({"a": tmp_path / "name"}, tmp_path / "out") == 3
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["a"]
    assert (tmp_path / "out" / "a").samefile(tmp_path / "blob") and not (tmp_path / "out" / "a").is_symlink()
    assert {path.name for path in tmp_path.iterdir() if "out" in path.name} == {"out"}
    assert (tmp_path / "out").stat().st_mode & 0o777 == 0o755


def test_another_file_system_gets_copies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def link(*_: Any) -> None:
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", link)
    (tmp_path / "a").write_text("text")
    place({"a": tmp_path / "a"}, tmp_path / "out")
    assert (tmp_path / "out" / "a").read_text() == "text"
    assert not (tmp_path / "out" / "a").samefile(tmp_path / "a")


def test_a_full_disk_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    (tmp_path / "a").write_text("new")
    place({"a": tmp_path / "a"}, tmp_path / "out")
    monkeypatch.setattr(os, "link", full)
    monkeypatch.setattr("shutil.copyfile", full)
    with pytest.raises(OSError, match="No space left"):
        place({"b": tmp_path / "a"}, tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["a"]
    assert {path.name for path in tmp_path.iterdir()} - {"a", "hub"} == {"out"}
