"""``unlearn merge``: the product of two small matrices, as peft defines it, is added to a large one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pipeline.__main__ import main
from pipeline.hub import model_folder
from tests.support.checkpoints import write_checkpoint

CONFIG = {"peft_type": "LORA", "r": 2, "lora_alpha": 3, "bias": "none", "target_modules": ["q_proj"]}
NAME = "model.layers.2.self_attn.q_proj"


@pytest.fixture
def folders(tmp_path: Path) -> dict[str, Path]:
    import torch
    from safetensors.torch import save_file

    write_checkpoint(tmp_path / "base")
    (tmp_path / "adapter").mkdir()
    rows, columns = model_folder.weights(tmp_path / "base")[f"{NAME}.weight"]["shape"]
    generator = torch.Generator().manual_seed(0)
    pair = {"A": torch.randn(2, columns, generator=generator), "B": torch.randn(rows, 2, generator=generator)}
    tensors = {f"base_model.model.{NAME}.lora_{which}.weight": value for which, value in pair.items()}
    save_file(tensors, tmp_path / "adapter" / "adapter_model.safetensors")
    return {name: tmp_path / name for name in ("base", "adapter", "out")}


def run(folders: dict[str, Path], config: dict[str, Any]) -> int:
    (folders["adapter"] / "adapter_config.json").write_text(json.dumps(config))
    options = zip(("--model", "--adapter", "--out"), folders.values(), strict=True)
    return main(["merge", *(str(word) for pair in options for word in pair)])


@pytest.mark.parametrize(("more", "scale"), [({}, 1.5), ({"use_rslora": True}, 3 / 2**0.5)])
def test_a_merged_model_is_a_model_with_the_products_added(
    folders: dict[str, Path], more: dict[str, Any], scale: float
) -> None:
    import torch
    from safetensors.torch import load_file

    assert run(folders, {**CONFIG, **more}) == 0
    assert model_folder.fault(folders["out"]) is None
    before, after = (load_file(folders[name] / "model.safetensors") for name in ("base", "out"))
    pair = load_file(folders["adapter"] / "adapter_model.safetensors")
    change = scale * pair[f"base_model.model.{NAME}.lora_B.weight"] @ pair[f"base_model.model.{NAME}.lora_A.weight"]
    torch.testing.assert_close(after.pop(f"{NAME}.weight"), before.pop(f"{NAME}.weight") + change)
    assert all(value.equal(before[name]) for name, value in after.items())


def test_what_cannot_be_merged_is_refused(folders: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(folders, {**CONFIG, "use_dora": True}) == 2
    assert "adapter_config.json: use_dora: True; allowed: None, False" in capsys.readouterr().err
    assert run({**folders, "base": folders["adapter"]}, CONFIG) == 2
    assert "--model" in (said := capsys.readouterr().err) and "unlearn merge" in said
    assert not folders["out"].exists()
    folders["out"].mkdir()
    assert run(folders, CONFIG) == 2
    assert "--out" in capsys.readouterr().err
