"""A checkpoint folder is looked at whole, and what keeps it from being used is said in a line with what to do."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.hub import model_folder
from tests.support.checkpoints import CONFIG, write_checkpoint, write_safetensors


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_checkpoint(tmp_path / "model")


def cut(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def cut_in_header(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:50])


def pointer(name: str) -> Callable[[Path], None]:
    text = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"
    return lambda folder: [(folder / name).write_text(text), None][1]


def adapter(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "adapter_model.safetensors")
    (folder / "config.json").unlink()
    (folder / "adapter_config.json").write_text("{}")


def configured(**changes: object) -> Callable[[Path], None]:
    return lambda folder: [(folder / "config.json").write_text(json.dumps({**CONFIG, **changes})), None][1]


def fp8(folder: Path) -> None:
    write_safetensors(folder / "model.safetensors", {"model.layers.0.mlp.up_proj.weight": (4, 4)}, "F8_E4M3", 1)


def pickled(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def unnamed_part(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")


def indexed(tensor: str, file: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        unnamed_part(folder)
        (folder / model_folder.INDEX).write_text(json.dumps({"weight_map": {tensor: file}}))

    return change


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (cut, "has not all of model.safetensors"),
        (configured(model_type="gpt2"), "model_type 'gpt2', which is not that of 'LlamaForCausalLM'"),
        (configured(model_type=None), "model_type None, which is not that of 'LlamaForCausalLM'"),
        (cut_in_header, "model.safetensors that is no safetensors file, or not all of one (50 bytes)"),
        (pointer("model.safetensors"), "a pointer in place of model.safetensors: load it with 'git lfs pull'"),
        (pointer("tokenizer.json"), "a pointer in place of tokenizer.json"),
        (adapter, "is a LoRA adapter (adapter_config.json), not a model: name its base"),
        (configured(eos_token_id="</s>"), "config.json with eos_token_id '</s>'; allowed: the number of a token"),
        (
            lambda folder: (folder / "generation_config.json").write_text('{"eos_token_id": [1, 2.5]}'),
            "generation_config.json with eos_token_id [1, 2.5]; allowed",
        ),
        (configured(quantization_config={"quant_method": "fp8"}), "quantised weights (quantization_config: fp8)"),
        (fp8, "quantised weights, model.layers.0.mlp.up_proj.weight (F8_E4M3)"),
        (pickled, "has no *.safetensors file; pytorch_model.bin is not read: convert it"),
        (
            lambda folder: (folder / "model.safetensors").rename(folder / "model-Q4.gguf"),
            "has no *.safetensors file; model-Q4.gguf is not read: convert it",
        ),
        (unnamed_part, "model-00001-of-00002.safetensors, but neither model.safetensors nor"),
        (indexed("model.norm.weight", "model-00002-of-00002.safetensors"), "lacks model-00002-of-00002.safetensors"),
        (indexed("model.other.weight", "model-00001-of-00002.safetensors"), "lacks the tensor 'model.other.weight'"),
        (
            indexed("a", "../model/model-00001-of-00002.safetensors"),
            "the name of a .safetensors file in the same folder",
        ),
        (lambda folder: (folder / "config.json").write_text("[]"), "config.json that is not a JSON object"),
        (lambda folder: (folder / "tokenizer.json").unlink(), "has no tokenizer file"),
    ],
)
def test_what_is_no_whole_checkpoint_is_refused(folder: Path, change: Callable[[Path], object], words: str) -> None:
    change(folder)
    fault = model_folder.fault(folder)
    assert fault is not None and words in fault


@pytest.mark.parametrize("end", ['"9"', "null", "[1]", "1e999", "NaN", '{"a": 1}'])
def test_places_of_other_types_are_no_safetensors_file(folder: Path, end: str) -> None:
    text = f'{{"a": {{"dtype": "F32", "shape": [1], "data_offsets": [0, {end}]}}}}'.encode()
    (folder / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + bytes(4))
    fault = model_folder.fault(folder)
    assert fault is not None and "model.safetensors" in fault


def test_a_header_as_long_as_a_huge_file_takes_no_memory(folder: Path) -> None:
    """64 GiB, of which the file says that they are its header; it takes no room on the disk."""
    with (folder / "model.safetensors").open("wb") as file:
        file.write((2**36 - 8).to_bytes(8, "little"))
        file.truncate(2**36)
    assert "no safetensors file" in str(model_folder.fault(folder))


@pytest.mark.parametrize(
    ("tied", "changed", "refused"), [(True, True, True), (True, False, False), (False, True, False)]
)
def test_an_output_layer_of_its_own_is_no_tied_one(folder: Path, tied: bool, changed: bool, refused: bool) -> None:
    """Only this compares the two embeddings: their last value decides, in two files, and an untied model may differ."""
    (folder / "model.safetensors").unlink()
    (folder / "config.json").write_text(json.dumps({**CONFIG, "tie_word_embeddings": tied}))
    names = {"model.embed_tokens.weight": "model-1.safetensors", "lm_head.weight": "model-2.safetensors"}
    for name, file in names.items():
        write_safetensors(folder / file, {name: (6, 4)}, "F32", 4)
    if changed:
        with (folder / "model-2.safetensors").open("r+b") as stream:
            stream.seek(-1, 2)
            stream.write(b"\x01")
    (folder / model_folder.INDEX).write_text(json.dumps({"weight_map": names}))
    fault = model_folder.fault(folder)
    if refused:
        assert fault is not None and all(word in fault for word in (*names, "tie_word_embeddings"))
    else:
        assert fault is None


def test_whole_folders_are_taken(folder: Path, shared_data: Path) -> None:
    """In one file and in several; beside one file an index of another form of the weights means nothing."""
    assert model_folder.fault(folder) is None
    (folder / model_folder.INDEX).write_text("{")
    assert model_folder.fault(folder) is None
    indexed("model.norm.weight", "model-00001-of-00002.safetensors")(folder)
    assert model_folder.fault(folder) is None


@pytest.mark.real_data
def test_a_real_model(real_data: Path) -> None:
    assert model_folder.fault(real_data / "models" / "stories260K") is None
