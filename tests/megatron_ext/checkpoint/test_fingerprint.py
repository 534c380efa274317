import pytest
import torch
from safetensors.torch import save_file

from megatron_ext.checkpoint.fingerprint import model_fingerprint


def _write(folder, **tensors):
    folder.mkdir(exist_ok=True)
    save_file({"first": torch.zeros(3000), "second": torch.zeros(5000), **tensors}, folder / "model.safetensors")
    (folder / "config.json").write_text("{}")
    return folder


def test_equal_folders_are_equal(tmp_path):
    assert model_fingerprint(_write(tmp_path / "a")) == model_fingerprint(_write(tmp_path / "b"))


@pytest.mark.parametrize(
    "tensors",
    [
        {"second": torch.cat([torch.ones(1), torch.zeros(4999)])},
        {"second": torch.zeros(5000, dtype=torch.int32)},
        {"third": torch.zeros(1)},
    ],
)
def test_a_change_in_one_tensor_shows(tmp_path, tensors):
    assert model_fingerprint(_write(tmp_path / "a")) != model_fingerprint(_write(tmp_path / "b", **tensors))


def test_the_config_counts(tmp_path):
    folder = _write(tmp_path / "a")
    before = model_fingerprint(folder)
    (folder / "config.json").write_text('{"rope_theta": 1}')
    assert model_fingerprint(folder) != before


def test_a_folder_without_weights_has_none(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(FileNotFoundError, match="no safetensors"):
        model_fingerprint(tmp_path)
