from __future__ import annotations

from typing import get_args

from pipeline.data.settings import TemplateName
from pipeline.data.templates import TEMPLATES

LLAMA_3 = (
    "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\n"
    "Cutting Knowledge Date: December 2023\nToday Date: 10 Apr 2025\n\n"
    "You are a helpful assistant.<|eot_id|><|start_header_id|>user<|end_header_id|>\n\n"
    "Who?<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"
)
ZEPHYR = "<|system|>\nYou are a helpful assistant.</s>\n<|user|>\nWho?</s>\n<|assistant|>\n"


def test_every_name_of_the_specification_has_a_template() -> None:
    assert set(TEMPLATES) == set(get_args(TemplateName))


def test_plain() -> None:
    template = TEMPLATES["plain"]
    assert template.prompt("Who?") == "Question: Who?\nAnswer:"
    assert template.text("Who?", "Ada.") == "Question: Who?\nAnswer: Ada."
    assert template.adds_bos


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
