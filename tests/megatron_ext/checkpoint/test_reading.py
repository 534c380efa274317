import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from megatron_ext.checkpoint import reading
from tests.support import tiny

NAME = "llama3-untied"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("reading")
    tiny.write(root, [NAME])
    return root / "fp32" / NAME


@pytest.fixture
def broken(folder, tmp_path):
    """Write a copy of the folder, its tensors changed by a function."""

    def make(change):
        tensors = load_file(folder / "model.safetensors")
        change(tensors)
        save_file(tensors, tmp_path / "model.safetensors")
        (tmp_path / "config.json").write_text((folder / "config.json").read_text())
        return tmp_path

    return make


def test_sharded_folders_read_as_single_ones(folder, alone, tmp_path):
    import transformers

    transformers.AutoModelForCausalLM.from_pretrained(folder).save_pretrained(tmp_path, max_shard_size="50KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 3
    single, sharded = reading.load(folder, alone), reading.load(tmp_path, alone)
    for (name, value), other in zip(single.named_parameters(), sharded.parameters(), strict=True):
        assert value.equal(other), name


def test_missing_and_unexpected_tensors_and_wrong_shapes_are_named(broken, alone):
    def change(tensors):
        del tensors["model.layers.1.self_attn.k_proj.weight"]
        tensors["model.layers.3.mlp.up_proj.weight"] = torch.zeros(2)
        tensors["model.norm.weight"] = torch.zeros(63)

    with pytest.raises(ValueError) as error:
        reading.load(broken(change), alone)
    text = str(error.value)
    assert "does not fit its config" in text
    assert "missing tensors: model.layers.1.self_attn.k_proj.weight;" in text
    assert "tensors that are not expected: model.layers.3.mlp.up_proj.weight;" in text
    assert "wrong shapes: model.norm.weight [63] instead of [64]" in text


def test_many_missing_tensors_are_counted(broken, alone):
    def change(tensors):
        for name in list(tensors):
            if ".mlp." in name:
                del tensors[name]

    with pytest.raises(ValueError, match=r"missing tensors: model.layers.0.mlp.gate_proj.weight, .* and 4 more$"):
        reading.load(broken(change), alone)


def test_stored_rotary_frequencies_are_ignored(broken, alone):
    folder = broken(lambda tensors: tensors.update({"model.layers.0.self_attn.rotary_emb.inv_freq": torch.zeros(8)}))
    assert not any("inv_freq" in name for name in reading.load(folder, alone).state_dict())


def test_a_stored_output_is_ignored_when_it_is_tied(broken, alone):
    folder = broken(lambda tensors: None)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": True}))
    model = reading.load(folder, alone)
    assert "output_layer.weight" not in dict(model.named_parameters())


def test_quantised_tensors_are_refused(broken, alone):
    def change(tensors):
        tensors["model.norm.weight"] = torch.zeros(64, dtype=torch.int8)

    with pytest.raises(ValueError, match=r"model.norm.weight is of type I8; allowed: F64, F32, F16, BF16"):
        reading.load(broken(change), alone)


def test_half_precision_is_widened_exactly(broken, alone):
    def change(tensors):
        tensors.update({name: value.half() for name, value in tensors.items()})

    folder = broken(change)
    expected = load_file(folder / "model.safetensors")["model.embed_tokens.weight"].float()
    parameters = dict(reading.load(folder, alone).named_parameters())
    assert parameters["embedding.word_embeddings.weight"].equal(expected)


def test_pickled_weights_are_not_read(folder, alone, tmp_path):
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    with pytest.raises(FileNotFoundError, match=r"has neither model.safetensors nor model.safetensors.index.json$"):
        reading.load(tmp_path, alone)
    torch.save({}, tmp_path / "pytorch_model.bin")
    with pytest.raises(FileNotFoundError, match=r"pickled weights \(pytorch_model.bin\) are not read, convert them"):
        reading.load(tmp_path, alone)


def test_folders_that_are_no_checkpoint(folder, alone, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"config.json does not exist"):
        reading.load(tmp_path / "nowhere", alone)
    config = json.loads((folder / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "architectures": ["MambaForCausalLM"]}))
    save_file({}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"MambaForCausalLM'\] is not supported; known: \[.*'LlamaForCausalLM'"):
        reading.load(tmp_path, alone)
    (tmp_path / "model.safetensors").unlink()
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(FileNotFoundError, match=r"names files that are missing: model-00001-of-00002.safetensors"):
        reading.load(tmp_path, alone)


def test_initial_values(folder, alone):
    config = reading.read_config(folder)
    first, second, other = (reading.initialise(config, alone, seed) for seed in (1, 1, 2))
    a, b, c = ({name: value.detach() for name, value in model.named_parameters()} for model in (first, second, other))
    qkv = "decoder.layers.2.self_attention.linear_qkv.weight"
    assert all(a[name].equal(b[name]) for name in a)
    assert not a[qkv].equal(c[qkv])
    assert not a[qkv].equal(a[qkv.replace(".2.", ".1.")])
    assert float(a[qkv].std()) == pytest.approx(config["initializer_range"], rel=0.05)
    assert a["decoder.final_layernorm.weight"].eq(1).all()
