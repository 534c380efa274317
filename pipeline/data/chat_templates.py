"""Which of our templates the chat template of a tokenizer speaks for."""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path
from typing import Any

from pipeline.data.errors import DataError
from pipeline.data.settings import TemplateName, TemplateParts

# What in a chat template tells which of our templates its model was tuned with, the most specific first.
CHAT_MARKS: dict[str, TemplateName] = {
    "<|start_header_id|>": "llama-3",
    "<|im_start|>": "chatml",
    "<start_of_turn>": "gemma",
    "<|end|>": "phi-3",
    "<|assistant|>": "zephyr",
    "[INST]": "llama-2",
}
QUESTION, ANSWER = "Qqq7319", "Aaa4826"  # stand for a question and an answer while a template is rendered
TODAY = datetime(2025, 4, 10)  # as in our template of Llama 3


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
    file = model / "chat_template.jinja"
    if file.is_file():
        return file.read_text(encoding="utf-8")
    template = _json(model / "tokenizer_config.json").get("chat_template")
    template = template or _json(model / "chat_template.json").get("chat_template")
    if isinstance(template, list):  # several, by name
        try:
            named = {entry["name"]: entry["template"] for entry in template}
        except (KeyError, TypeError):
            raise DataError(f"{model}: chat_template: must be a text, or objects with 'name' and 'template'") from None
        template = named.get("default") or next(iter(named.values()), "")
    if not isinstance(template or "", str):
        raise DataError(f"{model}: chat_template: must be a text, or objects with 'name' and 'template'")
    return template or ""


def rendered(model: Path) -> TemplateParts:
    """A tokenizer's own chat template as parts, rendered with a question, then with its answer, on a fixed day.

    Args:
        model: A Hugging Face folder.

    Raises:
        DataError: There is none, it cannot be rendered, or prompt and answer cannot be told apart in it.
    """
    text = chat_template(model)
    if not text:
        raise DataError("the tokenizer has no chat template; name one of ours")
    config = _json(model / "tokenizer_config.json")

    def render(question: str, answer: str | None) -> str:
        messages = [{"role": "user", "content": question}]
        messages += [] if answer is None else [{"role": "assistant", "content": answer}]
        return _render(text, config, messages, prompt=answer is None)

    prompt, whole = render(QUESTION, None), render(QUESTION, ANSWER)
    if (prompt.count(QUESTION), whole.count(QUESTION), whole.count(ANSWER)) != (1, 1, 1):
        raise DataError("the tokenizer's chat template does not write question and answer once each; give its parts")
    if not whole.startswith(prompt):
        message = f"the prompt ends in {prompt[-30:]!r}, and with an answer the text goes on otherwise"
        raise DataError(f"the tokenizer's chat template: prompt and answer cannot be told apart ({message})")
    before_question, after_question = prompt.split(QUESTION)
    before_answer, after_answer = whole[len(prompt) :].split(ANSWER)
    parts = (before_question, after_question, before_answer, after_answer.rstrip("\n"))
    return TemplateParts(
        before_question=before_question,
        after_question=after_question,
        before_answer=before_answer,
        after_answer=parts[-1],
        adds_bos=False,  # a chat template writes it itself
        special_tokens=[token for token in _added_tokens(model) if any(token in part for part in parts)],
        trims=render(f" {QUESTION} ", f" {ANSWER} ") == whole,
    )


def _render(text: str, config: dict[str, Any], messages: list[dict[str, str]], prompt: bool) -> str:
    """As transformers renders a chat template."""
    from jinja2 import TemplateError
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    def refuse(message: str) -> None:
        raise DataError(f"the tokenizer's chat template refuses a question with its answer: {message}")

    names = ("bos_token", "eos_token", "unk_token", "pad_token")
    tokens = {name: value.get("content") if isinstance(value := config.get(name), dict) else value for name in names}
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = lambda value, indent=None: json.dumps(value, ensure_ascii=False, indent=indent)
    environment.globals |= {"raise_exception": refuse, "strftime_now": TODAY.strftime}
    given = {name: token for name, token in tokens.items() if token is not None}
    try:
        return environment.from_string(text).render(
            messages=messages, add_generation_prompt=prompt, tools=None, documents=None, **given
        )
    except DataError:
        raise
    except (TemplateError, TypeError, ValueError, LookupError, ArithmeticError, RecursionError) as error:
        raise DataError(f"the tokenizer's chat template cannot be rendered: {error}") from None


def _added_tokens(model: Path) -> list[str]:
    """The tokens that a tokenizer takes out of a text before it cuts it, in their order."""
    entries = [*_json(model / "tokenizer.json").get("added_tokens", [])]
    entries += _json(model / "tokenizer_config.json").get("added_tokens_decoder", {}).values()
    return list(dict.fromkeys(entry["content"] for entry in entries if entry["content"].strip()))


def _json(file: Path) -> dict[str, Any]:
    if not file.is_file():
        return {}
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{file}: not JSON ({error})") from None
    return found if isinstance(found, dict) else {}
