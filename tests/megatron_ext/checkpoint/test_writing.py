import json
import os

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from megatron_ext.checkpoint import reading, writing
from megatron_ext.checkpoint.fingerprint import model_fingerprint
from tests.support import tiny

NAME = "qwen3-tied"


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    root = tmp_path_factory.mktemp("writing")
    tiny.write(root, [NAME])
    folder = root / "fp32" / NAME
    (folder / "tokenizer.json").write_text("{}")
    (folder / "notes.txt").write_text("not a checkpoint's")
    return folder


@pytest.fixture(scope="module")
def model(source, alone):
    return reading.load(source, alone)


def test_the_folder_is_complete_and_nothing_else_is_left(model, alone, source, tmp_path):
    writing.save(model, alone, tmp_path / "out", tokenizer_from=source)
    assert os.listdir(tmp_path) == ["out"]
    assert sorted(os.listdir(tmp_path / "out")) == [
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
    ]
    with safe_open(tmp_path / "out" / "model.safetensors", framework="pt") as file:
        assert file.metadata() == {"format": "pt"}


def test_transformers_opens_it_and_agrees(model, alone, source, tmp_path):
    import transformers

    writing.save(model, alone, tmp_path / "out", max_shard_bytes=30_000)
    first = transformers.AutoModelForCausalLM.from_pretrained(source)
    second = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    with torch.no_grad():
        ids = tiny.token_ids()
        assert first(ids).logits.equal(second(ids).logits)


def test_shards_are_bounded_and_indexed(model, alone, source, tmp_path):
    limit = 60_000  # as large as the largest parameter, of which a file has one at least
    writing.save(model, alone, tmp_path / "out", max_shard_bytes=limit)
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    files = sorted(path.name for path in (tmp_path / "out").glob("*.safetensors"))
    assert files[0] == f"model-00001-of-{len(files):05d}.safetensors"
    assert not (tmp_path / "out" / "model.safetensors").exists()
    merged = {}
    for file in files:
        tensors = load_file(tmp_path / "out" / file)
        assert len(tensors) == 1 or sum(value.nbytes for value in tensors.values()) <= limit
        assert all(index["weight_map"][name] == file for name in tensors)
        merged.update(tensors)
    expected = load_file(source / "model.safetensors")
    assert set(merged) == set(expected) == set(index["weight_map"])
    assert all(merged[name].equal(value) for name, value in expected.items())
    assert index["metadata"]["total_size"] == sum(value.nbytes for value in expected.values())


def test_an_existing_folder_is_replaced_whole(model, alone, source, tmp_path):
    out = tmp_path / "out"
    writing.save(model, alone, out, max_shard_bytes=30_000)
    writing.save(model, alone, out, tokenizer_from=source)
    assert not list(out.glob("model-*")) and not list(out.glob("*.index.json"))
    assert os.listdir(tmp_path) == ["out"]


def test_the_tokenizer_may_come_from_the_folder_that_is_replaced(model, alone, source, tmp_path):
    writing.save(model, alone, tmp_path / "out", tokenizer_from=source)
    writing.save(model, alone, tmp_path / "out", tokenizer_from=tmp_path / "out")
    assert (tmp_path / "out" / "tokenizer.json").read_text() == "{}"


def test_an_interrupted_save_leaves_the_old_folder(model, alone, source, tmp_path, monkeypatch):
    out = tmp_path / "out"
    writing.save(model, alone, out)
    before = model_fingerprint(out)

    def interrupt(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(writing, "_write_file", interrupt)
        writing.save(model, alone, out)
    assert model_fingerprint(out) == before
    with pytest.raises(FileNotFoundError):
        reading.load(tmp_path / ".out.partial", alone)
    writing.save(model, alone, out)
    assert os.listdir(tmp_path) == ["out"]


def test_a_save_killed_between_its_renames_is_repaired_by_the_next(model, alone, tmp_path, monkeypatch):
    out = tmp_path / "out"
    writing.save(model, alone, out)
    out.rename(tmp_path / ".out.replaced")

    def interrupt(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(writing, "_write_file", interrupt)
        writing.save(model, alone, out)
    reading.load(out, alone)


def test_written_values_are_those_of_the_parameters_now(model, alone, source, tmp_path):
    weight = dict(model.named_parameters())["decoder.layers.1.mlp.linear_fc2.weight"]
    before = weight.detach().clone()
    with torch.no_grad():
        weight.add_(1.0)
    writing.save(model, alone, tmp_path / "out")
    with torch.no_grad():
        weight.copy_(before)
    written = load_file(tmp_path / "out" / "model.safetensors")
    expected = load_file(source / "model.safetensors")
    changed = [name for name, value in expected.items() if not written[name].equal(value)]
    assert changed == ["model.layers.1.mlp.down_proj.weight"]
    assert written[changed[0]].equal(expected[changed[0]] + 1.0)
