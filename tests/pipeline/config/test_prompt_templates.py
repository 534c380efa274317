"""Prompt templates in model files: by name, with another system prompt, in parts, or the tokenizer's own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from megatron_ext.schema.safe_yaml import Loader
from pipeline.__main__ import main
from pipeline.config.load import CONFIGS, load
from pipeline.config.located_yaml import ConfigError
from pipeline.data.settings import TemplateParts
from pipeline.data.templates import TEMPLATES, Template
from pipeline.workflow.plan import Plan


@pytest.fixture
def write(tmp_path: Path) -> Callable[[Any], Path]:
    """Write mini with a model of that template."""

    def _write(template: Any) -> Path:
        model = yaml.load((CONFIGS / "models" / "mini-llama.yaml").read_text(), Loader)
        (tmp_path / "model.yaml").write_text(yaml.safe_dump(model | {"template": template}))
        experiment = yaml.load((CONFIGS / "experiments" / "mini.yaml").read_text(), Loader)
        experiment |= {"model": "model.yaml", "methods": ["npo"]}
        (tmp_path / "mine.yaml").write_text(yaml.safe_dump(experiment))
        return tmp_path / "mine.yaml"

    return _write


def problem(path: Path) -> str:
    with pytest.raises(ConfigError) as error:
        load(path)
    (found,) = error.value.problems
    return found


def test_a_name_stays_a_name_in_the_specification(write: Callable[[Any], Path], tmp_path: Path) -> None:
    """So that nothing that was prepared is prepared again."""
    spec = Plan(load(write("chatml")), tmp_path).jobs["data/mini"].spec
    assert spec.template == "chatml"  # type: ignore[attr-defined] # of what prepares


def test_a_named_template_with_another_system_prompt(write: Callable[[Any], Path], tmp_path: Path) -> None:
    config = load(write({"name": "chatml", "system": "You are Ada."}))
    template = Template.of(config.template)
    assert template.prompt("Who?") == TEMPLATES["chatml"].prompt("Who?").replace(
        "You are a helpful assistant.", "You are Ada."
    )
    assert (template.bos, template.eos) == ("<|im_start|>", "<|im_end|>")
    assert Plan(config, tmp_path).jobs["data/mini"].spec.template == config.template  # type: ignore[attr-defined] # as above


def test_parts(write: Callable[[Any], Path]) -> None:
    parts = {"before_question": "Q: ", "after_question": "\nA:", "before_answer": " ", "after_answer": "<|x|>"}
    config = load(write({**parts, "special_tokens": ["<|x|>"], "trims": True}))
    assert config.template == TemplateParts(**parts, special_tokens=["<|x|>"], trims=True)
    assert Template.of(config.template).text(" Who?", "Ada. ") == "Q: Who?\nA: Ada.<|x|>"
    assert Template.of(config.template).eos == "<|x|>"
    config = load(write({**parts, "special_tokens": ["<|x|>"], "trims": "answer"}))
    assert Template.of(config.template).text(" Who?", "Ada. ") == "Q:  Who?\nA: Ada.<|x|>"


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("chatlm", "template: unknown value 'chatlm'; did you mean 'chatml'? allowed: plain, "),
        ({"before_question": "Q"}, "template.after_question: is missing; or give the 'name'"),
        ({"name": "llama-2", "system": "S"}, "template.system: 'llama-2' has no system prompt"),
        ({"before_question": "Q", "after_question": "A", "system": "S"}, "template.system: goes with a template's"),
        ({"name": "plain", "special_tokens": ["<x>"]}, "template.special_tokens: '<x>' is in none of the parts"),
        ({"name": "plain", "suffix": ""}, "template.suffix: unknown key; allowed: "),
        ("tokenizer", "template: 'tokenizer' is not allowed: the tokenizer is trained on the data"),
    ],
)
def test_mistakes(template: Any, message: str, write: Callable[[Any], Path]) -> None:
    found = problem(write(template))
    assert "model.yaml" in found and message in found


@pytest.mark.slow
def test_a_row_is_shown_as_it_is_trained_on(
    write: Callable[[Any], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The closing token is labelled once, and no token of the prompt is."""
    path = str(write("chatml"))
    assert main(["validate", path, "--results", str(tmp_path / "results"), "--show-row", "3"]) == 0
    shown = capsys.readouterr().out.splitlines()
    start = next(i for i, line in enumerate(shown) if line.startswith("row 3 of forget: "))
    prompt, labels, *tokens = shown[start + 1 :]
    assert prompt.startswith(
        "prompt  '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n<|im_start|>user\\n"
    )
    assert labels.startswith("labels  '") and labels.endswith(".<|im_end|>'")
    marked = [line.startswith("*") for line in tokens]
    assert marked == sorted(marked) and 0 < sum(marked) < len(marked)
    assert [line.rpartition("  ")[2] for line in tokens if line.startswith("*")].count("'<|im_end|>'") == 1
    assert any(line.startswith("template   chatml: ") for line in shown)
    assert not (tmp_path / "results").exists()
    assert main(["validate", path, "--show-row", "80"]) == 2
    assert "--show-row: 80; the set 'forget' has the rows 0 to 79" in capsys.readouterr().err
