"""Adapters as peft's folders, and merged into a checkpoint: all have the logits of the trained model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from megatron_ext.checkpoint import adapter_folder, peft_folder, reading
from megatron_ext.config import TrainableLayers
from megatron_ext.config.lora import Lora
from megatron_ext.model import adapters
from tests.support import tiny

ATTENTION = ["q_proj", "k_proj", "o_proj"]
CASES: dict[str, dict[str, Any]] = {
    "llama3-untied": {"targets": ["q_proj", "v_proj", "up_proj", "down_proj"]},
    "qwen2-tied": {},  # biases
    "gemma2-tied": {"targets": ["k_proj", "o_proj", "gate_proj"]},
    "phi3-untied": {},  # matrices that the checkpoint fuses
    "qwen3moe-untied": {"targets": ATTENTION},
}


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bases")
    for name in CASES:
        tiny.make(name).save_pretrained(folder / name, max_shard_size="150KB" if name == "qwen2-tied" else "5GB")
    return folder


def adapted(base: Path, ranks: Any, part: TrainableLayers | None = None, **settings: Any) -> Any:
    """A model whose adapters were trained, so to speak: ``B`` is no longer zero."""
    model = reading.load(base, ranks, part)
    reading.add_adapters(model, ranks, Lora.model_validate({"rank": 3, "alpha": 6.0, **settings}), seed=1)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for adapter in adapters.of(model):
            adapter.B.normal_(0.0, 0.3, generator=generator)
    return model


def export(model: Any, ranks: Any, base: Path, out: Path) -> None:
    peft_folder.save(model, ranks, out / "adapter", base)
    peft_folder.merge(base, out / "adapter", out / "checkpoint", ranks)


def logits_of(folder: Path) -> Any:
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()
    with torch.no_grad():
        return model, model(tiny.token_ids()).logits


@pytest.mark.parametrize("name", CASES)
def test_trained_merged_and_peft_models_have_equal_logits(bases: Path, alone: Any, tmp_path: Path, name: str) -> None:
    base = bases / name
    model = adapted(base, alone, **CASES[name])
    wanted = tiny.logits(model, alone, tiny.token_ids())[..., : tiny.VOCABULARY]
    plain, before = logits_of(base)
    assert (wanted - before).abs().max() > 0.1, "the adapters do something"
    with adapters.disabled(model):
        off = tiny.logits(model, alone, tiny.token_ids())[..., : tiny.VOCABULARY]
    torch.testing.assert_close(off, before, rtol=1e-4, atol=1e-4)

    export(model, alone, base, tmp_path)

    torch.testing.assert_close(logits_of(tmp_path / "checkpoint")[1], wanted, rtol=1e-4, atol=1e-4)
    again = reading.load(base, alone)
    reading.add_adapters(again, alone, model.lora, seed=2)
    reading.fill_adapters(again, alone, adapter_folder.AdapterFolder(tmp_path / "adapter"))
    assert all(a.equal(b) for a, b in zip(again.parameters(), model.parameters(), strict=True))
    peft = pytest.importorskip("peft")
    with torch.no_grad():
        loaded = peft.PeftModel.from_pretrained(plain, tmp_path / "adapter")(tiny.token_ids()).logits
    torch.testing.assert_close(loaded, wanted, rtol=1e-4, atol=1e-4)


def test_what_peft_writes_is_merged_as_peft_merges_it(bases: Path, tmp_path: Path) -> None:
    """With every key that peft itself writes, and its other scale."""
    peft = pytest.importorskip("peft")
    base = bases / "qwen2-tied"
    config = peft.LoraConfig(r=3, lora_alpha=6, use_rslora=True, target_modules=["q_proj", "down_proj"])
    config.layers_to_transform = [0, 2]
    model = peft.get_peft_model(logits_of(base)[0], config)
    with torch.no_grad():
        for name, value in model.named_parameters():
            if "lora_B" in name:
                value.normal_(0.0, 0.3, generator=torch.Generator().manual_seed(7))
    model.save_pretrained(tmp_path / "adapter")

    adapter_folder.merge(base, tmp_path / "adapter", tmp_path / "merged")

    with torch.no_grad():
        wanted = model.merge_and_unload()(tiny.token_ids()).logits
    torch.testing.assert_close(logits_of(tmp_path / "merged")[1], wanted, rtol=1e-5, atol=1e-5)


def test_a_merged_checkpoint_has_the_bases_types_and_its_other_bytes(bases: Path, alone: Any, tmp_path: Path) -> None:
    """Sums are fp32 sums of the stored values, rounded once; of layers that are not built nothing changes."""
    base, part = tmp_path / "base", TrainableLayers(up_to=1, layers_to_transform=[1], target_modules=["gate_up_proj"])
    tiny.make("qwen2-tied").to(torch.bfloat16).save_pretrained(base, max_shard_size="60KB")
    (base / "notes.txt").write_text("no part of a checkpoint")
    model = adapted(base, alone, part)

    export(model, alone, base, tmp_path)

    assert json.loads((tmp_path / "adapter" / adapter_folder.CONFIG).read_text())["layers_to_transform"] == [1]
    pairs = load_file(tmp_path / "adapter" / adapter_folder.WEIGHTS)
    assert not (tmp_path / "checkpoint" / "notes.txt").exists()
    adapter_folder.merge(base, tmp_path / "adapter", tmp_path / "by-one-process")
    changed = []
    for file in sorted(base.glob("*.safetensors")):
        merged = load_file(tmp_path / "checkpoint" / file.name)
        same = tmp_path / "by-one-process" / file.name
        assert same.read_bytes() == (tmp_path / "checkpoint" / file.name).read_bytes()
        for name, before in load_file(file).items():
            key = f"base_model.model.{name.removesuffix('.weight')}.lora_"
            if f"{key}A.weight" in pairs:
                change = 2.0 * pairs[f"{key}B.weight"].float() @ pairs[f"{key}A.weight"].float()
                before = (before.float() + change).to(torch.bfloat16)
                changed.append(name)
            assert merged[name].equal(before), name
    assert changed == [f"model.layers.1.mlp.{x}_proj.weight" for x in ("gate", "up")]


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("qwen3moe-untied", {}, "lora.targets: .*experts"),
        (
            "qwen3moe-untied",
            {"targets": ["q_proj", "up_proj"]},
            "lora.targets: a mixture .*up_proj; allowed",
        ),
        ("phi3-untied", {"targets": ["q_proj"]}, "lora.targets: .*q_proj; allowed: qkv_proj"),
        ("llama3-untied", {"targets": ["gate_up_proj"]}, "lora.targets: .*gate_up_proj; allowed: q_proj"),
    ],
)
def test_matrices_that_a_model_lacks_are_refused(
    bases: Path, alone: Any, name: str, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        adapted(bases / name, alone, **settings)


CHANGED = {
    "use_dora: True": lambda config, tensors: config.update(use_dora=True),
    "init_lora_weights: 'pissa'": lambda config, tensors: config.update(init_lora_weights="pissa"),
    "layer_replication": lambda config, tensors: config.update(layer_replication=[[0, 2], [1, 3]]),
    "peft_type: 'LOHA'": lambda config, tensors: config.update(peft_type="LOHA"),
    "rank_pattern": lambda config, tensors: config.update(rank_pattern={"q_proj": 8}),
    "r: 0": lambda config, tensors: config.update(r=0),
    "has the tensor 'base_model.model.lm_head.weight'": lambda config, tensors: tensors.update(
        {"base_model.model.lm_head.weight": torch.zeros(2, 2)}
    ),
    "has model.layers.9.x.weight: no such tensor": lambda config, tensors: tensors.update(
        {f"base_model.model.model.layers.9.x.lora_{which}.weight": torch.zeros(3, 3) for which in "AB"}
    ),
    "lora_B.weight has no lora_A": lambda config, tensors: tensors.update(
        {"base_model.model.model.layers.0.mlp.up_proj.lora_B.weight": torch.zeros(88, 3)}
    ),
    r"lora_A.weight \[3, 64\], lora_B \[64, 2\]": lambda config, tensors: tensors.update(
        {"base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight": torch.zeros(64, 2)}
    ),
}


@pytest.mark.parametrize("message", CHANGED)
def test_a_folder_that_is_no_sum_of_matrices_is_refused(bases: Path, alone: Any, tmp_path: Path, message: str) -> None:
    base, folder = bases / "llama3-untied", tmp_path / "adapter"
    peft_folder.save(adapted(base, alone, targets=["q_proj"]), alone, folder, base)
    config, tensors = (
        json.loads((folder / adapter_folder.CONFIG).read_text()),
        load_file(folder / adapter_folder.WEIGHTS),
    )
    CHANGED[message](config, tensors)
    (folder / adapter_folder.CONFIG).write_text(json.dumps(config))
    save_file(tensors, folder / adapter_folder.WEIGHTS)
    with pytest.raises(ValueError, match=message):
        adapter_folder.merge(base, folder, tmp_path / "merged")
    assert not (tmp_path / "merged").exists()
