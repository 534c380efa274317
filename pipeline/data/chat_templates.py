"""Which of our templates the chat template of a tokenizer speaks for."""

from __future__ import annotations

import json
from pathlib import Path

from pipeline.data.settings import TemplateName

# What in a chat template tells which of our templates its model was tuned with, the most specific first.
CHAT_MARKS: dict[str, TemplateName] = {"<|start_header_id|>": "llama-3", "<|assistant|>": "zephyr", "[INST]": "llama-2"}


def template_of(model: Path) -> tuple[TemplateName, str]:
    """The template that a model's tokenizer speaks for, and why.

    Args:
        model: A Hugging Face folder.
    """
    text = chat_template(model)
    if not text:
        return "plain", "the tokenizer has no chat template"
    for mark, name in CHAT_MARKS.items():
        if mark in text:
            return name, f"the tokenizer's chat template has {mark}"
    return "plain", "the tokenizer's chat template is none of ours; --template chooses another"


def chat_template(model: Path) -> str:
    """The text of a tokenizer's chat templates; empty where it has none."""
    file, config = model / "chat_template.jinja", model / "tokenizer_config.json"
    if file.is_file():
        return file.read_text(encoding="utf-8")
    template = json.loads(config.read_text(encoding="utf-8")).get("chat_template") if config.is_file() else None
    return template if isinstance(template, str) else json.dumps(template) if template else ""
