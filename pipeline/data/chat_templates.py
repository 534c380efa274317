"""Which of our templates the chat template of a tokenizer speaks for."""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.data.errors import DataError
from pipeline.data.settings import TemplateName, TemplateParts, Trims

if TYPE_CHECKING:
    from jinja2.sandbox import ImmutableSandboxedEnvironment

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
    tokens = _named_tokens(model)

    def render(question: str, answer: str | None) -> str:
        messages = [{"role": "user", "content": question}]
        messages += [] if answer is None else [{"role": "assistant", "content": answer}]
        return _render(text, tokens, messages, prompt=answer is None)

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
        trims=_trims(whole, render(f" {QUESTION} ", ANSWER), render(QUESTION, f" {ANSWER} ")),
    )


def _trims(whole: str, question: str, answer: str) -> Trims:
    """Of which texts a template removes white space, given what it renders with spaces around neither, and around each.

    Many templates do so with the question alone, or with the answer alone.
    """
    trimmed = []
    for name, mark, found in (("question", QUESTION, question), ("answer", ANSWER, answer)):
        if found not in (whole, whole.replace(mark, f" {mark} ")):
            raise DataError(
                f"the tokenizer's chat template does something else with white space around the {name} than to keep "
                "it or to remove it on both sides; give its parts"
            )
        trimmed.append(found == whole)
    if trimmed[0] == trimmed[1]:
        return trimmed[0]
    return "question" if trimmed[0] else "answer"


def _named_tokens(model: Path) -> dict[str, Any]:
    """The special tokens that a chat template may write by name: those of tokenizer_config.json, else of the map."""
    files = [_json(model / name) for name in ("tokenizer_config.json", "special_tokens_map.json")]
    tokens = {}
    for name in ("bos_token", "eos_token", "unk_token", "pad_token"):
        value = next((file[name] for file in files if file.get(name)), None)
        token = value.get("content") if isinstance(value, dict) else value
        if token is not None:
            tokens[name] = token
    return tokens


def _render(text: str, tokens: dict[str, Any], messages: list[dict[str, str]], prompt: bool) -> str:
    """As transformers renders a chat template."""
    from jinja2 import TemplateError

    try:
        return (
            _environment()
            .from_string(text)
            .render(messages=messages, add_generation_prompt=prompt, tools=None, documents=None, **tokens)
        )
    except DataError:
        raise
    except (TemplateError, TypeError, ValueError, LookupError, ArithmeticError, RecursionError) as error:
        raise DataError(f"the tokenizer's chat template cannot be rendered: {error}") from None


def _environment() -> ImmutableSandboxedEnvironment:
    """What chat templates may use; nothing in it reaches Python or files."""
    from jinja2 import nodes
    from jinja2.ext import Extension
    from jinja2.parser import Parser
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """``{% generation %}``: marks what the model says, for training on that alone; here only its text counts."""

        tags = {"generation"}

        def parse(self, parser: Parser) -> nodes.Node:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return nodes.Scope(body, lineno=line)  # as in transformers, what is set in it is not seen outside

    def refuse(message: str) -> None:
        raise DataError(f"the tokenizer's chat template refuses a question with its answer: {message}")

    def to_json(
        value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
    ) -> str:
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, "jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = to_json
    environment.globals |= {"raise_exception": refuse, "strftime_now": TODAY.strftime}
    return environment


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
