"""Checkpoints of which few matrices were trained: the base's bytes, except for those."""

import json
import os

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from megatron_ext.checkpoint import patching, reading
from megatron_ext.checkpoint.fingerprint import model_fingerprint
from megatron_ext.config import TrainableLayers
from tests.support import tiny

NAME = "qwen2-tied"
SCOPE = TrainableLayers(up_to=1, layers_to_transform=[1], target_modules=["down_proj", "qkv_proj"])
TRAINED = {f"model.layers.1.{name}.weight" for name in ("mlp.down_proj", *(f"self_attn.{x}_proj" for x in "qkv"))}


@pytest.fixture(scope="module", params=["fp32", "fp16", "bf16 in files"])
def base(request, tmp_path_factory):
    """A folder as it might be downloaded, in one file or several, with files that are no part of a checkpoint."""
    folder = tmp_path_factory.mktemp("base")
    dtype = {"fp32": torch.float32, "fp16": torch.float16}.get(request.param, torch.bfloat16)
    size = "50KB" if request.param.endswith("files") else "5GB"
    tiny.make(NAME).to(dtype).save_pretrained(folder, max_shard_size=size)
    (folder / "tokenizer.json").write_text("{}")
    (folder / "notes.txt").write_text("not a checkpoint's")
    torch.save({}, folder / "pytorch_model.bin")
    return folder


def merged(folder):
    return {name: value for file in sorted(folder.glob("*.safetensors")) for name, value in load_file(file).items()}


def spans(file):
    """Where each tensor's bytes are in a safetensors file."""
    data = file.read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:start])
    header.pop("__metadata__", None)
    return {name: range(*(start + at for at in entry["data_offsets"])) for name, entry in header.items()}


def trained(base, alone):
    model = reading.load(base, alone, SCOPE)
    with torch.no_grad():
        for value in model.parameters():
            value.add_(0.25)  # frozen ones too: what became of them must not matter
    return model


@pytest.mark.slow
def test_only_bytes_of_trained_tensors_differ(base, alone, tmp_path):
    patching.save_changed(trained(base, alone), alone, tmp_path / "out", base)
    files = sorted(file.name for file in base.glob("*.safetensors"))
    assert sorted(file.name for file in (tmp_path / "out").glob("*.safetensors")) == files
    for name in files:
        before, after = (bytearray((folder / name).read_bytes()) for folder in (base, tmp_path / "out"))
        assert len(before) == len(after)
        for tensor, span in spans(base / name).items():
            if tensor in TRAINED:
                assert before[span.start : span.stop] != after[span.start : span.stop]
                before[span.start : span.stop] = after[span.start : span.stop] = b""
                before[span.start : span.start] = after[span.start : span.start] = bytes(len(span))
        assert before == after
    first, second = merged(base), merged(tmp_path / "out")
    for name in TRAINED:
        assert second[name].dtype == first[name].dtype
        assert second[name].equal((first[name].float() + 0.25).to(first[name].dtype)), name


def test_known_files_are_copied_and_no_others(base, alone, tmp_path):
    patching.save_changed(trained(base, alone), alone, tmp_path / "out", base)
    assert os.listdir(tmp_path) == ["out"]
    unknown = {"notes.txt", "pytorch_model.bin"}
    assert set(os.listdir(tmp_path / "out")) == set(os.listdir(base)) - unknown
    for file in ("config.json", "generation_config.json", "tokenizer.json"):
        assert (tmp_path / "out" / file).read_bytes() == (base / file).read_bytes()


def test_transformers_opens_it(base, alone, tmp_path):
    import transformers

    patching.save_changed(trained(base, alone), alone, tmp_path / "out", base)
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert model.get_parameter("model.layers.1.mlp.down_proj.weight").equal(
        merged(tmp_path / "out")["model.layers.1.mlp.down_proj.weight"]
    )


def test_an_interrupted_save_leaves_the_old_folder_or_none(base, alone, tmp_path, monkeypatch):
    out = tmp_path / "out"

    def interrupt(*_):
        raise KeyboardInterrupt

    for before in ([], ["out"]):
        with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
            patched.setattr(patching, "overwrite", interrupt)
            patching.save_changed(trained(base, alone), alone, out, base)
        assert [name for name in os.listdir(tmp_path) if not name.startswith(".")] == before
        if not before:
            patching.save_changed(trained(base, alone), alone, out, base)
            known = model_fingerprint(out)
    assert model_fingerprint(out) == known
    patching.save_changed(trained(base, alone), alone, out, base)
    assert os.listdir(tmp_path) == ["out"]


def test_the_base_may_be_the_folder_that_is_replaced(base, alone, tmp_path):
    patching.save_changed(reading.load(base, alone, SCOPE), alone, tmp_path / "out", base)
    assert {name: value.tolist() for name, value in merged(tmp_path / "out").items()} == {
        name: value.tolist() for name, value in merged(base).items()
    }
    patching.save_changed(trained(base, alone), alone, tmp_path / "out", tmp_path / "out")
    changed = {name for name, value in merged(tmp_path / "out").items() if not value.equal(merged(base)[name])}
    assert changed == TRAINED


def test_a_whole_model_can_be_written_this_way(base, alone, tmp_path):
    model = reading.load(base, alone)
    with torch.no_grad():
        for value in model.parameters():
            value.mul_(2.0)
    patching.save_changed(model, alone, tmp_path / "out", base)
    for name, value in merged(base).items():
        assert merged(tmp_path / "out")[name].equal(2 * value), name


def test_a_stored_tensor_of_another_shape_is_refused(base, alone, tmp_path):
    model = trained(base, alone)
    model.hf_config = {**model.hf_config, "intermediate_size": 44}
    model.decoder.layers[1].mlp.linear_fc2.weight.data = torch.zeros(64, 44)
    with pytest.raises(
        ValueError, match=r"model.layers.1.mlp.down_proj.weight has the shape \[64, 88\], not \[64, 44\]"
    ):
        patching.save_changed(model, alone, tmp_path / "out", base)
    assert not (tmp_path / "out").exists()
    with safe_open(sorted(base.glob("*.safetensors"))[0], framework="pt") as file:
        assert file.metadata() == {"format": "pt"}
