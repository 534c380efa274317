from __future__ import annotations

import errno
import json
import resource
from pathlib import Path
from typing import Any

import pytest

from pipeline.data import cache
from pipeline.data.settings import BpeTokenizer, FolderSource
from pipeline.specs import PrepareSpec
from pipeline.steps.programs import ROOT, source_files

# Files that the prepare step runs, too, and that decide nothing about its output: the registry and its interface.
REGISTRY = {
    "pipeline/__init__.py",
    "pipeline/benchmarks/__init__.py",
    "pipeline/benchmarks/base.py",
    "pipeline/steps/__init__.py",
}


@pytest.fixture
def entry(tmp_path: Path) -> tuple[Path, dict[str, Any]]:
    """A cache with one entry, made from a folder with one file."""
    file = tmp_path / "made" / "train" / "full.npz"
    file.parent.mkdir(parents=True)
    file.write_bytes(b"rows")
    manifest = {"files": {"train/full.npz": cache.sha256(file)}, "rows": 1}
    cache.store(tmp_path / "cache", "key", tmp_path / "made", manifest)
    return tmp_path / "cache", manifest


def test_fetch_gives_back_files_and_manifest(entry: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    folder, manifest = entry
    assert cache.fetch(folder, "key", tmp_path / "copy") == manifest
    assert (tmp_path / "copy" / "train" / "full.npz").read_bytes() == b"rows"
    assert cache.fetch(folder, "other", tmp_path / "copy") is None
    assert [path.name for path in folder.iterdir()] == ["key"]


@pytest.mark.parametrize("damage", ["changed", "missing", "manifest", "no files"])
def test_a_damaged_entry_is_removed_with_a_message(
    entry: tuple[Path, dict[str, Any]], tmp_path: Path, capsys: pytest.CaptureFixture[str], damage: str
) -> None:
    folder, _ = entry
    file = folder / "key" / "train" / "full.npz"
    if damage == "changed":
        file.write_bytes(b"rowz")
    elif damage == "missing":
        file.unlink()
    else:
        (folder / "key" / "manifest.json").write_text("{" if damage == "manifest" else "{}")
    assert cache.fetch(folder, "key", tmp_path / "copy") is None
    message = capsys.readouterr().err
    assert f"{folder / 'key'} is damaged" in message
    assert "making it again" in message
    assert not (folder / "key").exists()
    assert not list((tmp_path / "copy").glob("**/*.npz"))


def test_a_full_disk_of_the_reader_is_no_damage(tmp_path: Path) -> None:
    file = tmp_path / "made" / "train" / "full.npz"
    file.parent.mkdir(parents=True)
    file.write_bytes(bytes(2 * 10**6))
    manifest = {"files": {"train/full.npz": cache.sha256(file)}}
    cache.store(tmp_path / "cache", "key", tmp_path / "made", manifest)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10**6, before[1]))
    try:
        with pytest.raises(OSError) as raised:
            cache.fetch(tmp_path / "cache", "key", tmp_path / "copy")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert raised.value.errno == errno.EFBIG
    assert cache.fetch(tmp_path / "cache", "key", tmp_path / "copy") == manifest


@pytest.mark.parametrize("name", ["train/full.npz", "manifest.json"])
def test_an_entry_that_cannot_be_read_stays(
    entry: tuple[Path, dict[str, Any]],
    tmp_path: Path,
    name: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder, manifest = entry
    opened = Path.open

    def broken(path: Path, *args: Any, **more: Any) -> Any:
        if path == folder / "key" / name:
            raise OSError(errno.EIO, "Input/output error", str(path))
        return opened(path, *args, **more)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "open", broken)
        assert cache.fetch(folder, "key", tmp_path / "copy") is None
    assert f"{folder / 'key'} cannot be read" in capsys.readouterr().err
    assert cache.fetch(folder, "key", tmp_path / "copy") == manifest


NAMES = ("../victim", "/{victim}", "train/../../victim", "train//full.npz", "./train/full.npz", "train/", "", ".", "..")


@pytest.mark.parametrize("name", [*NAMES, "manifest.json", "other/full.npz", "train", "train/none.npz", 3])
def test_a_name_that_leaves_the_entry_is_damage(
    name: Any, entry: tuple[Path, dict[str, Any]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Only this has a manifest of somebody else: nothing outside of the copy is written."""
    folder, _ = entry
    victim = tmp_path / "victim"
    victim.write_text("mine")
    (folder / "victim").write_text("theirs")
    name = name.format(victim=victim) if isinstance(name, str) else name
    digest = cache.sha256(folder / "victim")
    (folder / "key" / "manifest.json").write_text(json.dumps({"files": {name: digest} if name != 3 else [3]}))
    before = sorted(path for path in tmp_path.rglob("*") if not path.is_relative_to(folder))
    assert cache.fetch(folder, "key", tmp_path / "copy") is None
    assert "is damaged" in capsys.readouterr().err and victim.read_text() == "mine"
    after = [path for path in tmp_path.rglob("*") if not path.is_relative_to(folder)]
    assert sorted(path for path in after if path != tmp_path / "copy") == before


@pytest.mark.parametrize("link", ["key", "key/train", "key/train/full.npz", "key/manifest.json"])
def test_a_link_in_a_shared_cache_is_damage_and_what_it_names_stays(
    link: str, entry: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    """Only this puts links to somebody's files where the cache's own are."""
    folder, manifest = entry
    target = tmp_path / "private"
    (folder / link).rename(target)
    (folder / link).symlink_to(target)
    assert cache.fetch(folder, "key", tmp_path / "copy") is None
    assert target.exists() and not (folder / "key").is_symlink() and not (folder / "key").exists()
    assert not list((tmp_path / "copy").rglob("*.npz"))
    cache.store(folder, "key", tmp_path / "made", manifest)
    assert cache.fetch(folder, "key", tmp_path / "copy") == manifest


def test_an_entry_already_there_is_kept(entry: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    folder, manifest = entry
    cache.store(folder, "key", tmp_path / "made", {**manifest, "rows": 2})
    assert cache.fetch(folder, "key", tmp_path / "copy") == manifest
    assert [path.name for path in folder.iterdir()] == ["key"]


def test_key_depends_on_every_part_and_on_the_code(monkeypatch: pytest.MonkeyPatch) -> None:
    keys = {cache.key(template="plain"), cache.key(template="zephyr"), cache.key(template="plain", max_length=64)}
    assert len(keys) == 3
    assert cache.key(template="plain") in keys
    monkeypatch.setattr(cache, "code_digest", lambda: "other code")
    assert cache.key(template="plain") not in keys


@pytest.mark.parametrize("family", ["lm_eval", "muse", "tofu"])
def test_the_key_covers_the_code_that_prepares_data(family: str) -> None:
    spec = PrepareSpec(
        family=family,
        source=FolderSource(path=Path("files")),
        forget_split="forget",
        sets=[],
        tokenizer=BpeTokenizer(vocab_size=300),
        max_length=64,
        output=Path("out"),
    )
    others = {file.relative_to(ROOT).as_posix() for file in source_files(spec) if file not in cache.code_files()}
    assert {file for file in others if file.startswith("pipeline/")} == REGISTRY
