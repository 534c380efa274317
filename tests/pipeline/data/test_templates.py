from __future__ import annotations

import dataclasses
from typing import get_args

import pytest

from pipeline.data.settings import TemplateName
from pipeline.data.templates import TEMPLATES, Template

LLAMA_3 = (
    "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\n"
    "Cutting Knowledge Date: December 2023\nToday Date: 10 Apr 2025\n\n"
    "You are a helpful assistant.<|eot_id|><|start_header_id|>user<|end_header_id|>\n\n"
    "Who?<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"
)
ZEPHYR = "<|system|>\nYou are a helpful assistant.</s>\n<|user|>\nWho?</s>\n<|assistant|>\n"


def test_every_name_of_the_specification_has_a_template() -> None:
    assert set(TEMPLATES) == set(get_args(TemplateName))


@pytest.mark.parametrize(
    ("name", "prompt", "completion"),
    [
        (
            "chatml",
            "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
            "<|im_start|>user\nWho?<|im_end|>\n<|im_start|>assistant\n",
            "Ada.<|im_end|>",
        ),
        (
            "gemma",
            "<bos><start_of_turn>user\nWho?<end_of_turn>\n<start_of_turn>model\n",
            "Ada.<end_of_turn>",
        ),
        ("phi-3", "<|user|>\nWho?<|end|>\n<|assistant|>\n", "Ada.<|end|>"),
        ("mistral-instruct", "[INST] Who?[/INST]", " Ada.</s>"),
    ],
)
def test_templates_of_instruct_models(name: TemplateName, prompt: str, completion: str) -> None:
    assert (TEMPLATES[name].prompt("Who?"), TEMPLATES[name].completion("Ada.")) == (prompt, completion)


@pytest.mark.parametrize("name", get_args(TemplateName))
def test_a_template_is_its_parts(name: TemplateName) -> None:
    """But for the tokens of a tokenizer that is made for it, which parts do not say where the text has none."""
    again = Template.of(TEMPLATES[name].parts)
    assert dataclasses.replace(again, bos="", eos="") == dataclasses.replace(TEMPLATES[name], bos="", eos="")
    assert Template.of(name) is TEMPLATES[name]


def test_plain() -> None:
    template = TEMPLATES["plain"]
    assert template.prompt("Who?") == "Question: Who?\nAnswer:"
    assert template.text("Who?", "Ada.") == "Question: Who?\nAnswer: Ada."
    assert template.adds_bos


def test_open_unlearning_s_plain_form() -> None:
    template = TEMPLATES["plain-open-unlearning"]
    assert template.prompt("Who?") == "Question: Who?\nAnswer: "
    assert template.text("Who?", "Ada.") == TEMPLATES["plain"].text("Who?", "Ada.")
    assert template.labels_by_length and template.adds_bos


def test_llama_2() -> None:
    template = TEMPLATES["llama-2"]
    assert template.prompt("Who?") == "[INST] Who? [/INST]"
    assert template.text("Who?", "Ada.") == "[INST] Who? [/INST]Ada."
    assert template.adds_bos


def test_llama_3_is_what_its_official_jinja_template_renders() -> None:
    template = TEMPLATES["llama-3"]
    assert template.prompt(" Who?\n") == LLAMA_3
    assert template.text("Who?", "Ada. ") == LLAMA_3 + "Ada.<|eot_id|>"
    assert not template.adds_bos


def test_zephyr_is_what_its_official_jinja_template_renders_but_for_the_last_line_end() -> None:
    template = TEMPLATES["zephyr"]
    assert template.prompt("Who?") == ZEPHYR
    assert template.text("Who?", "Ada.") == ZEPHYR + "Ada.</s>"
    assert not template.adds_bos
