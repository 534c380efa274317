"""A model folder that somebody gave: nothing outside of it is read, linked or copied."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from megatron_ext.checkpoint import folders, reading
from megatron_ext.checkpoint.fingerprint import model_fingerprint
from megatron_ext.checkpoint.model_files import INDEX, MOST_BYTES, check_folder, read_object, weight_map
from pipeline.data.errors import DataError
from pipeline.data.tokenizer import Tokenizer
from pipeline.hub import model_folder
from pipeline.hub.download import place

TENSOR = {"a": torch.ones(2)}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A folder with the files of a model, as far as these tests need them, beside private files."""
    folder = tmp_path / "model"
    folder.mkdir()
    save_file(TENSOR, folder / "model.safetensors")
    (folder / "config.json").write_text("{}")
    (folder / "tokenizer.json").write_text("{}")
    (tmp_path / "private").write_text('{"secret": 1}')
    save_file(TENSOR, tmp_path / "private.safetensors")
    return folder


READERS: dict[str, Callable[[Path], Any]] = {
    "weights": folders.weight_files,
    "config": reading.read_config,
    "fingerprint": model_fingerprint,
    "tokenizer": Tokenizer.load,
    "copies": lambda folder: folders.copy_files(folder, ["added_tokens.json"], folder.parent / "copy"),
    "checkpoint": lambda folder: folders.copy_checkpoint(folder, folder.parent / "copy"),
    "planning": lambda folder: _raise(model_folder.fault(folder)),
}


def _raise(fault: str | None) -> None:
    if fault:
        raise ValueError(fault)


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("target", ["absolute", "relative", "to a link", "to nothing", "by its folder"])
def test_a_link_that_leads_out_is_refused_and_nothing_is_copied(model: Path, reader: str, target: str) -> None:
    """`added_tokens.json`, a link to a private file, was copied into every checkpoint, readable by all."""
    (model.parent / "copy").mkdir()
    private = model.parent / "private"
    (model.parent / "onward").symlink_to(private)
    places = {"absolute": private, "relative": "../private", "to a link": "../onward", "to nothing": "/nothing/there"}
    link = model / "added_tokens.json"
    link.symlink_to(places.get(target, "../model/../private"))
    with pytest.raises(ValueError, match=r"added_tokens\.json: is a link to .*, outside of the folder") as error:
        READERS[reader](model)
    assert isinstance(error.value, DataError) or reader != "tokenizer"
    assert not list((model.parent / "copy").iterdir())


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json"])
def test_every_file_that_is_read_is_looked_at(model: Path, name: str) -> None:
    (model / name).unlink()
    (model / name).symlink_to(model.parent / "private")
    with pytest.raises(ValueError, match=rf"{name}: is a link to "):
        check_folder(model)


def test_links_within_the_folder_and_of_the_hubs_cache_are_followed(tmp_path: Path) -> None:
    cache = tmp_path / "models--owner--name"
    (cache / "blobs").mkdir(parents=True)
    snapshot = cache / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    save_file(TENSOR, cache / "blobs" / "ab12")
    (snapshot / "model.safetensors").symlink_to("../../blobs/ab12")
    (snapshot / "again.safetensors").symlink_to("model.safetensors")
    check_folder(snapshot)
    (tmp_path / "by-another-name").symlink_to(snapshot)
    assert folders.weight_files(tmp_path / "by-another-name") == ["model.safetensors"]
    place({"model.safetensors": snapshot / "model.safetensors"}, tmp_path / "placed")
    assert not (tmp_path / "placed" / "model.safetensors").is_symlink()
    (cache / "blobs" / "cd34").symlink_to("/etc/passwd")  # a cache that others write to
    (snapshot / "config.json").symlink_to("../../blobs/cd34")
    with pytest.raises(ValueError, match=r"config\.json: is a link to /etc/passwd"):
        check_folder(snapshot)


def test_a_link_in_place_of_the_hubs_blobs_opens_nothing(tmp_path: Path) -> None:
    """An archive may hold `blobs`, a link to a home folder, and a model beside it that looks like one of the cache."""
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "private").touch()
    (tmp_path / "archive" / "snapshots" / "model").mkdir(parents=True)
    (tmp_path / "archive" / "blobs").symlink_to(tmp_path / "home")
    (tmp_path / "archive" / "snapshots" / "model" / "x.json").symlink_to("../../blobs/private")
    with pytest.raises(ValueError, match=r"x\.json: is a link to .*home/private, outside of the folder"):
        check_folder(tmp_path / "archive" / "snapshots" / "model")


def test_other_folders_called_blobs_are_not_the_hubs(model: Path) -> None:
    blobs = model.parents[1] / "blobs"
    blobs.mkdir()
    (blobs / "ab12").touch()
    (model / "x.json").symlink_to("../../blobs/ab12")
    with pytest.raises(ValueError, match="outside of the folder"):
        check_folder(model)


@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo])
@pytest.mark.parametrize("name", ["x.safetensors", "generation_config.json"])
def test_what_is_no_file_is_named(model: Path, make: Callable[[Path], None], name: str) -> None:
    make(model / name)
    with pytest.raises(ValueError, match=rf"{name}: is not a file"):
        model_fingerprint(model)


OUTSIDE: list[Any] = ["../private.safetensors", "/abs/private.safetensors", "sub/x.safetensors", "..", "", ".", 1, None]
OUTSIDE += ["config.json", ["model.safetensors"], "x.safetensors/", "./x.safetensors", "x\0.safetensors", "..\\x"]


@pytest.mark.parametrize("name", OUTSIDE)
@pytest.mark.parametrize("reader", [folders.weight_files, READERS["checkpoint"], READERS["planning"]])
def test_an_index_names_files_of_its_folder_only(model: Path, name: Any, reader: Callable[[Path], Any]) -> None:
    (model / "model.safetensors").rename(model / "one.safetensors")
    (model / "sub").mkdir()
    save_file(TENSOR, model / "sub" / "x.safetensors")
    (model.parent / "copy").mkdir()
    (model / INDEX).write_text(json.dumps({"weight_map": {"b": "one.safetensors", "a": name}}))
    before = sorted(model.parent.rglob("*"))
    with pytest.raises(
        ValueError, match=r"index\.json: weight_map: 'a': .*; allowed: the name of a \.safetensors file"
    ):
        reader(model)
    assert sorted(model.parent.rglob("*")) == before


@pytest.mark.parametrize(
    "text", ["[]", "{", "[" * 100_000, '{"weight_map": {}}', '{"weight_map": []}', "{}", "\xff", "1" * 5000]
)
def test_an_index_that_is_none_is_named(model: Path, text: str) -> None:
    (model / INDEX).write_bytes(text.encode("latin-1"))
    with pytest.raises(ValueError, match=r"index\.json: "):
        weight_map(model)


def test_a_file_of_settings_has_a_size_that_is_read(model: Path) -> None:
    with (model / "config.json").open("wb") as file:
        file.truncate(MOST_BYTES + 1)  # takes no room on the disk
    with pytest.raises(ValueError, match=rf"config\.json: has {MOST_BYTES + 1} bytes; allowed: at most {MOST_BYTES}"):
        read_object(model / "config.json")


PLACES = ["[1]", "[2, 1]", "[-1, 1]", '["x"]']
HEADERS = ["{", "[]", '{"a": 1}', *(f'{{"a": {{"data_offsets": {text}}}}}' for text in PLACES)]


@pytest.mark.parametrize("header", HEADERS)
def test_a_fingerprint_names_a_file_whose_header_is_broken(model: Path, header: str) -> None:
    data = len(header).to_bytes(8, "little") + header.encode()
    (model / "model.safetensors").write_bytes(data)
    with pytest.raises(ValueError, match=r"model\.safetensors: is not a safetensors file"):
        model_fingerprint(model)
