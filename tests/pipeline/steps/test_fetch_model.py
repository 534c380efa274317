"""Published checkpoints come from a local folder or the hub's local cache, and are checked before they are used."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipeline.hub import adapter
from pipeline.launch.specification import as_yaml
from pipeline.specs import FetchSpec
from pipeline.steps import fetch_model
from tests.support.checkpoints import write_safetensors

CONFIG = {"architectures": ["LlamaForCausalLM"], "hidden_size": 64}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "source"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(CONFIG))
    write_safetensors(folder / "model.safetensors", {"a": (2, 3)})
    (folder / "tokenizer.json").write_text("{}")
    (folder / "pytorch_model.bin").write_bytes(b"pickled")
    (folder / "train.py").write_text("")
    (folder / "consolidated.safetensors").write_bytes(b"the weights in another naming")
    (folder / "original").mkdir()
    (folder / "original" / "params.json").write_text("{}")
    return folder


def run(spec: FetchSpec, tmp_path: Path) -> Path:
    path = tmp_path / "spec.yaml"
    path.write_text(as_yaml(spec))
    spec.output.mkdir(exist_ok=True)
    fetch_model.main([str(path)])
    return spec.output


def test_only_weights_config_and_tokenizer_are_taken(source: Path, tmp_path: Path) -> None:
    spec = FetchSpec(folder=source, expected=CONFIG, output=tmp_path / "out")
    output = run(spec, tmp_path)
    names = {path.name for path in (output / "checkpoint").iterdir()}
    assert names == {"config.json", "model.safetensors", "tokenizer.json"}
    weights = (source / "model.safetensors").read_bytes()
    assert (output / "checkpoint" / "model.safetensors").read_bytes() == weights
    summary = json.loads((output / "summary.json").read_text())
    assert summary["flags"] == [] and summary["bytes"] == len(json.dumps(CONFIG)) + len(weights) + 2
    run(spec, tmp_path)  # again, over what is there
    assert {path.name for path in output.iterdir()} == {"checkpoint", "summary.json"}


def test_adapters_are_merged_into_their_base_model(source: Path, tmp_path: Path) -> None:
    """The checkpoint is the base with their product added, and its files are those of the base."""
    import torch
    from safetensors.torch import load_file, save_file

    before = {"a.weight": torch.randn(4, 3), "b": torch.randn(2)}
    save_file(before, source / "model.safetensors", {"format": "pt"})
    folder, first, second = tmp_path / "adapter", torch.randn(2, 3), torch.randn(4, 2)
    folder.mkdir()
    names = {"base_model.model.a.lora_A.weight": first, "base_model.model.a.lora_B.weight": second}
    save_file(names, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 2, "lora_alpha": 6}))
    assert adapter.fault(folder, source) is None
    output = run(FetchSpec(folder=source, adapter=folder, output=tmp_path / "out"), tmp_path) / "checkpoint"
    after = load_file(output / "model.safetensors")
    torch.testing.assert_close(after["a.weight"], before["a.weight"] + 3 * second @ first)
    assert after["b"].equal(before["b"])
    assert {path.name for path in output.iterdir()} == {"config.json", "model.safetensors", "tokenizer.json"}
    write_safetensors(folder / "adapter_model.safetensors", {name: (2, 5) for name in names})
    assert "a.weight: [4, 3]" in str(adapter.fault(folder, source))
    with pytest.raises(SystemExit, match=r"adapter: .*a\.lora_A\.weight \[2, 5\]"):
        run(FetchSpec(folder=source, adapter=folder, output=tmp_path / "other"), tmp_path)
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "use_dora": True}))
    assert "use_dora: True" in str(adapter.fault(folder, None))
    assert adapter.fault(source, None) == "has no adapter_config.json"


def test_an_architecture_that_was_not_planned_is_refused(source: Path, tmp_path: Path) -> None:
    spec = FetchSpec(folder=source, expected={**CONFIG, "hidden_size": 128}, output=tmp_path / "out")
    with pytest.raises(SystemExit, match="hidden_size: 64, the model file says 128"):
        run(spec, tmp_path)
    assert not (tmp_path / "out" / "checkpoint").exists()


def test_an_incomplete_folder_is_refused(source: Path, tmp_path: Path) -> None:
    (source / "model.safetensors").unlink()
    with pytest.raises(SystemExit, match=r"has no \*\.safetensors file"):
        run(FetchSpec(folder=source, output=tmp_path / "out"), tmp_path)


def test_a_hub_repository_in_the_local_cache(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commit = "0123456789abcdef0123456789abcdef01234567"
    weights = (source / "model.safetensors").read_bytes()
    cache = tmp_path / "hub" / "models--some--model"
    (cache / "snapshots").mkdir(parents=True)
    source.rename(cache / "snapshots" / commit)
    (cache / "refs").mkdir()
    (cache / "refs" / "main").write_text(commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    output = run(FetchSpec(hub="some/model", output=tmp_path / "out"), tmp_path)
    assert (output / "checkpoint" / "model.safetensors").read_bytes() == weights
    assert json.loads((output / "summary.json").read_text())["revision"] == commit
    with pytest.raises(SystemExit, match=r"'other/model' at revision 'main': HF_HUB_OFFLINE(.|\n)*'folder' in the"):
        run(FetchSpec(hub="other/model", output=tmp_path / "out"), tmp_path)


def test_only_what_is_taken_is_loaded(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub.utils import filter_repo_objects

    names = [str(path.relative_to(source)) for path in source.rglob("*") if path.is_file()]
    loaded: list[str] = []

    def download(*_: object, allow_patterns: list[str], ignore_patterns: list[str], **__: object) -> str:
        loaded.extend(filter_repo_objects(names, allow_patterns=allow_patterns, ignore_patterns=ignore_patterns))
        return str(source)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    run(FetchSpec(hub="some/model", output=tmp_path / "out"), tmp_path)
    assert set(loaded) == {"config.json", "model.safetensors", "tokenizer.json"}


def test_weights_that_were_not_all_loaded_are_refused(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a connection the library gives what it has, and only the index tells that it is not all."""
    weights = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    (source / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weights}))
    (source / "model.safetensors").rename(source / "model-00001-of-00002.safetensors")
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *_, **__: str(source))
    with pytest.raises(SystemExit, match=r"'some/model': the cache's .* lacks model-00002-of-00002\.safetensors"):
        run(FetchSpec(hub="some/model", output=tmp_path / "out"), tmp_path)
    assert list((tmp_path / "out").iterdir()) == []
