"""A model by its name on the hub or its folder alone: its files say all that a plan needs."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from megatron_ext.schema.safe_yaml import Loader
from pipeline.config.load import CONFIGS, load
from pipeline.config.located_yaml import ConfigError
from pipeline.data.settings import TemplateParts
from pipeline.hub import description
from pipeline.workflow.plan import Plan
from tests.support.checkpoints import CONFIG, write_checkpoint, write_safetensors

CHAT = (
    "<s>{% for m in messages %}{% if m.role == 'user' %}user:{{ m.content }}|{% else %}model:{{ m.content }}</s>"
    "{% endif %}{% endfor %}{% if add_generation_prompt %}model:{% endif %}"
)
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """Write an experiment with a model of that entry."""

    def _write(model: dict[str, Any], **changes: Any) -> Path:
        document = yaml.load((CONFIGS / "experiments" / "mini.yaml").read_text(), Loader)
        document |= {"model": model, "methods": ["npo"], "training": {}, **changes}
        document["evaluation"] = {"options": {"privleak": False}}
        (tmp_path / "mine.yaml").write_text(yaml.safe_dump(document))
        return tmp_path / "mine.yaml"

    return _write


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The hub's local cache, without a connection; the folder in which it keeps a model's files."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    folder = tmp_path / "hub" / "models--Some--Model-1B" / "snapshots" / COMMIT
    folder.mkdir(parents=True)
    (folder.parents[1] / "refs").mkdir()
    (folder.parents[1] / "refs" / "main").write_text(COMMIT)
    description.describe.cache_clear()
    yield folder
    description.describe.cache_clear()


def write_tokenizer(folder: Path, *special: str, more: Sequence[str] = ()) -> None:
    """A ``tokenizer.json`` of words and marks, with these special tokens; ``more`` are in its vocabulary alone."""
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    content = {
        "version": "1.0",
        "added_tokens": [{"id": i, "content": token, "special": True, **flags} for i, token in enumerate(special)],
        "pre_tokenizer": {"type": "Whitespace"},
        "model": {
            "type": "WordLevel",
            "vocab": {token: i for i, token in enumerate([*special, *more, "?"])},
            "unk_token": "?",
        },
    }
    (folder / "tokenizer.json").write_text(json.dumps(content))


def problems(path: Path) -> list[str]:
    with pytest.raises(ConfigError) as error:
        load(path)
    return error.value.problems


def test_adapters_lie_beside_their_base_model(write: Callable[..., Path], tmp_path: Path) -> None:
    """They are merged when the model is fetched, which happens again when a file of either is another one."""
    base, adapter = write_checkpoint(tmp_path / "base"), tmp_path / "peft"
    adapter.mkdir()
    (found,) = problems(write({"path": "base", "adapter": "peft"}))
    assert "model.adapter: " in found and "has no adapter_config.json" in found
    (adapter / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 2, "lora_alpha": 4}))
    name = "base_model.model.model.layers.0.self_attn.q_proj.lora_{}.weight"
    tensors = {name.format("A"): (2, 32), name.format("B"): (30, 2)}
    write_safetensors(adapter / "adapter_model.safetensors", tensors)
    (found,) = problems(write({"path": "base", "adapter": "peft"}))
    assert f"model.adapter: '{adapter}': model.layers.0.self_attn.q_proj.lora_A.weight [2, 32]" in found
    write_safetensors(adapter / "adapter_model.safetensors", {**tensors, name.format("B"): (32, 2)})
    job = Plan(load(write({"path": "base", "adapter": "peft"})), tmp_path).jobs["models/target"]
    assert (job.spec.folder, job.spec.adapter) == (base, adapter)  # type: ignore[attr-defined] # a FetchSpec's
    assert {adapter / "adapter_config.json", adapter / "adapter_model.safetensors"} <= set(job.inputs)


def test_a_folder_is_a_whole_entry(write: Callable[..., Path], tmp_path: Path) -> None:
    """It starts at the experiment's file, and its tokenizer says which template its model speaks."""
    folder = write_checkpoint(tmp_path / "My Model")
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": CHAT, "eos_token": "</s>"}))
    write_tokenizer(folder, "<s>", "</s>")
    config = load(write({"path": "My Model"}))
    assert (config.model.name, config.model.title, config.model.template) == ("my-model", "My Model", "tokenizer")
    assert config.template == TemplateParts(
        before_question="<s>user:",
        after_question="|model:",
        after_answer="</s>",
        adds_bos=False,
        special_tokens=["<s>", "</s>"],
    )
    assert (config.shape.hidden, config.shape.vocabulary) == (32, 300)
    jobs = Plan(config, tmp_path / "results").jobs
    assert jobs["models/target"].spec.folder == folder  # type: ignore[attr-defined] # of what fetches
    assert jobs["models/target"].spec.expected == {}  # type: ignore[attr-defined] # as above
    changed = load(
        write({"path": "My Model", "template": "plain", "name": "own", "layouts": {2: {"tensor": 2}}}, layout=2)
    )
    assert (changed.model.name, changed.model.template, changed.layout.tensor) == ("own", "plain", 2)


def test_each_special_token_of_a_template_is_one_token(write: Callable[..., Path], tmp_path: Path) -> None:
    """Before any work: a token that the vocabulary has, and tokenizer.json not as one, would become its letters."""
    folder = write_checkpoint(tmp_path / "model")
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "</s>"}))
    path = write({"path": "model", "template": "zephyr"})
    write_tokenizer(folder, "<s>", "</s>")
    assert load(path).template == "zephyr"
    write_tokenizer(folder, "<s>", more=["</s>"])
    (found,) = problems(path)
    assert "model.template: its special token '</s>' is 3 tokens in a text" in found
    write_tokenizer(folder, "<s>")
    (found,) = problems(path)
    assert "model.template: the vocabulary holds no token '</s>'" in found
    (folder / "tokenizer.json").write_text('{"model": {}}')
    (found,) = problems(path)
    assert "tokenizer.json: no tokenizer that can be read" in found


@pytest.mark.parametrize("template", ["zephyr", "plain"])
def test_the_model_has_every_id_that_its_tokenizer_uses(
    write: Callable[..., Path], tmp_path: Path, template: str
) -> None:
    """A special token of neither the tokenizer's ends nor the template may be beyond them."""
    folder = write_checkpoint(tmp_path / "model")
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "</s>"}))
    size = json.loads((folder / "config.json").read_text())["vocab_size"]
    words = [f"w{i}" for i in range(size - 2)]
    write_tokenizer(folder, "<s>", "</s>", more=words[1:])
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    tokenizer["added_tokens"].append({**tokenizer["added_tokens"][0], "id": size, "content": "<image_soft_token>"})
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    assert load(write({"path": "model", "template": template})).shape.vocabulary == size
    write_tokenizer(folder, "<s>", "</s>", more=words)
    (found,) = problems(write({"path": "model", "template": template}))
    assert f"model.path: its tokenizer has {size + 1} ids, but the model's vocab_size is {size}" in found


def test_a_folders_name_is_shown_as_one_line(write: Callable[..., Path], tmp_path: Path) -> None:
    """It becomes a title, which a terminal prints."""
    write_checkpoint(tmp_path / "a\x1b[2J\nb")
    config = load(write({"path": "a\x1b[2J\nb"}))
    assert (config.model.name, config.model.title) == ("a-2j-b", "a\\x1b[2J b")


def test_it_is_the_base_where_the_target_is_trained(write: Callable[..., Path], tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "model")
    training = yaml.load((CONFIGS / "experiments" / "mini.yaml").read_text(), Loader)["training"]
    config = load(write({"path": "model"}, training={name: training[name] for name in ("target", "retrain")}))
    assert list(Plan(config, tmp_path).jobs)[:4] == ["models/base", "data/mini", "models/target", "models/retrain"]


def test_a_name_on_the_hub_is_a_whole_entry(
    write: Callable[..., Path], hub: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The cache is enough, without its weights; what the plan was checked against must be what is fetched later."""
    (hub / "config.json").write_text(json.dumps({**CONFIG, "transformers_version": "9"}))
    (hub / "tokenizer.json").write_text("{}")
    config = load(write({"hub": "Some/Model-1B"}))
    assert (config.model.name, config.model.title, config.shape.layers) == ("model-1b", "Some/Model-1B", 3)
    expected = Plan(config, tmp_path).jobs["models/target"].spec.expected  # type: ignore[attr-defined] # as above
    assert expected["num_hidden_layers"] == 3 and "transformers_version" not in expected
    assert capsys.readouterr().err == ""


def test_what_is_fetched_to_plan_is_said(
    write: Callable[..., Path], hub: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Config and tokenizer only, once."""
    asked: list[Any] = []

    def download(*_: Any, allow_patterns: list[str], **__: Any) -> str:
        asked.append(allow_patterns)
        (hub / "config.json").write_text(json.dumps(CONFIG))
        (hub / "tokenizer.json").write_text("{}")
        return str(hub)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    path = write({"hub": "Some/Model-1B", "revision": "main"})
    load(path)
    load(path)
    assert len(asked) == 1 and "config.json" in asked[0] and not [name for name in asked[0] if "safetensors" in name]
    assert capsys.readouterr().err == "hub: fetching config and tokenizer of Some/Model-1B\n"


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({}, "has no config.json"),
        ({"config.json": {**CONFIG, "quantization_config": {"quant_method": "awq"}}}, "quantised weights"),
        ({"config.json": CONFIG, "adapter_config.json": {}}, "is a LoRA adapter"),
        ({"config.json": {**CONFIG, "architectures": ["OPTForCausalLM"]}}, "OPTForCausalLM"),
    ],
)
def test_what_cannot_be_used_is_said_at_its_key(
    files: dict[str, Any], words: str, write: Callable[..., Path], hub: Path
) -> None:
    for name, content in files.items():
        (hub / name).write_text(json.dumps(content))
        (hub / "tokenizer.json").write_text("{}")
    found = problems(write({"hub": "Some/Model-1B"}))
    assert [line for line in found if "model.hub: " in line and words in line], found


def test_a_folder_that_is_not_whole_is_said_at_its_key(write: Callable[..., Path], tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "model")
    (folder / "model.safetensors").unlink()
    (found,) = problems(write({"path": "model"}))
    assert "mine.yaml" in found and "model.path: " in found and "has no *.safetensors file" in found
    for wrong in ({}, {"path": "model", "hub": "a/b"}, {"path": "model", "revision": "main"}):
        assert "model" in problems(write(wrong))[0]
