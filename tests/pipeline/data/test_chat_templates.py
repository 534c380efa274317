"""A tokenizer's own chat template, rendered once and taken apart."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipeline.data.chat_templates import rendered
from pipeline.data.errors import DataError
from pipeline.data.settings import TemplateParts
from pipeline.data.templates import TEMPLATES, Template

# As tokenizers of these families have them, without tools.
CHATML = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' }}{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
GEMMA = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}"
    "{% endif %}"
    "{% for message in messages %}{% if (message['role'] == 'assistant') %}{% set role = 'model' %}{% else %}"
    "{% set role = message['role'] %}{% endif %}"
    "{{ '<start_of_turn>' + role + '\n' + message['content'] | trim + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{'<start_of_turn>model\n'}}{% endif %}"
)
PHI_3 = (
    "{% for message in messages %}{% if message['role'] == 'user' %}{{'<|user|>\n' + message['content'] + '<|end|>\n'}}"
    "{% elif message['role'] == 'assistant' %}{{'<|assistant|>\n' + message['content'] + '<|end|>\n'}}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)
MISTRAL = (
    "{{- bos_token }}{%- for message in messages %}{%- if message['role'] == 'user' %}"
    "{{- '[INST] ' + message['content'] + '[/INST]' }}{%- else %}{{- ' ' + message['content'] + eos_token}}{%- endif %}"
    "{%- endfor %}"
)
TOKENS = (
    "<|im_start|>",
    "<|im_end|>",
    "<start_of_turn>",
    "<end_of_turn>",
    "<bos>",
    "<|user|>",
    "<|end|>",
    "</s>",
    "<s>",
)
TOKENS += ("<|assistant|>", "[INST]", "[/INST]")


def folder_of(template: str, folder: Path, **config: object) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "tokenizer.json").write_text(json.dumps({"added_tokens": [{"content": token} for token in TOKENS]}))
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": template, **config}))
    return folder


@pytest.mark.parametrize(
    ("name", "template", "config"),
    [
        ("chatml", CHATML, {}),
        ("gemma", GEMMA, {"bos_token": "<bos>"}),
        ("phi-3", PHI_3, {}),
        ("mistral-instruct", MISTRAL, {"bos_token": {"content": "<s>"}, "eos_token": "</s>"}),
    ],
)
def test_named_templates_are_what_the_tokenizers_own_ones_render(
    name: str, template: str, config: dict[str, object], tmp_path: Path
) -> None:
    """But for the start token, which Mistral's writes and ours leaves to the tokenizer."""
    own, named = Template.of(rendered(folder_of(template, tmp_path, **config))), TEMPLATES[name]  # type: ignore[index] # one of its keys
    start = named.bos if named.adds_bos else ""
    for question, answer in (("Who?", "Ada."), (" Who \n", " Ada")):
        assert own.prompt(question) == start + named.prompt(question)
        assert own.completion(answer) == named.completion(answer)
    assert set(own.special_tokens) == {*named.special_tokens, *([start] if start else [])}
    assert own.eos == named.eos


def test_a_system_prompt_of_its_own_the_day_and_what_comes_before_an_answer(tmp_path: Path) -> None:
    """A model that thinks before it answers has an empty thought before an answer, which is a part of what it says."""
    template = (
        "{%- if strftime_now is defined %}{{ strftime_now('%d %b %Y') }}{%- endif %}\n"
        "{%- for message in messages %}{%- if message.role == 'user' %}<|user|>{{ message.content }}"
        "{%- else %}<|assistant|><think></think>{{ message.content }}<|end|>{%- endif %}{%- endfor %}"
        "{%- if add_generation_prompt %}<|assistant|>{%- endif %}"
    )
    assert rendered(folder_of(template, tmp_path)) == TemplateParts(
        before_question="10 Apr 2025<|user|>",
        after_question="<|assistant|>",
        before_answer="<think></think>",
        after_answer="<|end|>",
        adds_bos=False,
        special_tokens=["<|user|>", "<|end|>", "<|assistant|>"],
    )


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ("", "has no chat template"),
        ("{{ messages[0].content }}", "does not write question and answer once each"),
        (
            "{% for m in messages %}{{ m.content }}|{% endfor %}{% if add_generation_prompt %}say:{% endif %}",
            "prompt and answer cannot be told apart",
        ),
        ("{{ raise_exception('no') }}", "refuses a question with its answer: no"),
        ("{% for %}", "cannot be rendered"),
        ("{{ messages.__class__.__mro__ }}", "cannot be rendered"),
    ],
)
def test_what_cannot_be_taken_apart_is_refused(template: str, words: str, tmp_path: Path) -> None:
    """Nor does a template reach into Python: it is rendered in a sandbox."""
    with pytest.raises(DataError, match=words):
        rendered(folder_of(template, tmp_path))


def test_where_a_template_may_stand(tmp_path: Path) -> None:
    folder = folder_of("", tmp_path)
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"chat_template": [{"name": "rag", "template": "x"}, {"name": "default", "template": PHI_3}]})
    )
    expected = rendered(folder)
    (folder / "tokenizer_config.json").write_text("{}")
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": PHI_3}))
    assert rendered(folder) == expected
    (folder / "chat_template.jinja").write_text(PHI_3)
    assert rendered(folder) == expected


@pytest.mark.parametrize(
    "code",
    [
        "cycler.__init__.__globals__.os.system('touch ran')",
        "raise_exception.__globals__['__builtins__']['open']('ran', 'w')",
        "strftime_now.__self__.__class__.__mro__",
        "messages.__class__.__base__.__subclasses__()",
        "messages.append(1)",
        "''.format.__self__.__class__",
        "'{0.__class__.__mro__}'.format(messages)",
        "1 // 0",
        "messages[7].x",
    ],
)
def test_a_template_of_somebody_else_runs_nothing(code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only this renders a template that would run code, change what it is given, or fail; it is an error of data."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match="chat template"):
        rendered(folder_of(f"{{{{ {code} }}}}", tmp_path / "model"))
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("start", ["<s>", {"content": "<s>"}])
def test_a_start_token_that_the_map_alone_names_is_written(start: object, tmp_path: Path) -> None:
    folder = folder_of(MISTRAL, tmp_path, eos_token="</s>")
    (folder / "special_tokens_map.json").write_text(json.dumps({"bos_token": start, "eos_token": "<|end|>"}))
    parts = rendered(folder)
    assert parts.before_question == "<s>[INST] "
    assert parts.after_answer == "</s>"  # what tokenizer_config.json names goes first


def test_a_block_that_marks_what_is_generated_is_its_text(tmp_path: Path) -> None:
    marked = PHI_3.replace("{{'<|assistant|>\n' + ", "{{'<|assistant|>\n'}}{% generation %}{{").replace(
        "+ '<|end|>\n'}}{% endif %}{% endfor", "+ '<|end|>\n'}}{% endgeneration %}{% endif %}{% endfor"
    )
    assert marked.count("generation %}") == 2
    assert rendered(folder_of(marked, tmp_path / "marked")) == rendered(folder_of(PHI_3, tmp_path / "plain"))
    # Nothing is seen outside that is set inside.
    inside = "{% generation %}{% set x = 'inside' %}{% endgeneration %}{{ x }}" + PHI_3
    assert rendered(folder_of(inside, tmp_path / "set")) == rendered(folder_of(PHI_3, tmp_path / "plain"))
    with pytest.raises(DataError, match="cannot be rendered"):
        rendered(folder_of("{% generation %}{{ messages.__class__.__mro__ }}{% endgeneration %}", tmp_path / "code"))


def test_json_is_written_with_the_settings_that_transformers_has(tmp_path: Path) -> None:
    given = "{{ {'b': 'é', 'a': 1} | tojson(ensure_ascii=true, separators=[',', ':'], sort_keys=true) }}"
    assert rendered(folder_of(given + PHI_3, tmp_path)).before_question == '{"a":1,"b":"\\u00e9"}<|user|>\n'


@pytest.mark.parametrize(
    ("user", "assistant", "trims"),
    [("", "", False), (" | trim", " | trim", True), (" | trim", "", "question"), ("", ".strip()", "answer")],
)
def test_question_and_answer_are_trimmed_each_as_the_template_does(
    user: str, assistant: str, trims: object, tmp_path: Path
) -> None:
    template = (
        f"{{% for m in messages %}}{{% if m.role == 'user' %}}<|user|>{{{{ m.content{user} }}}}<|end|>{{% else %}}"
        f"<|assistant|>{{{{ m.content{assistant} }}}}<|end|>{{% endif %}}{{% endfor %}}"
        "{% if add_generation_prompt %}<|assistant|>{% endif %}"
    )
    parts = rendered(folder_of(template, tmp_path))
    assert parts.trims == trims
    question, answer = " Who? ".strip() if user else " Who? ", " Ada ".strip() if assistant else " Ada "
    assert Template.of(parts).text(" Who? ", " Ada ") == f"<|user|>{question}<|end|><|assistant|>{answer}<|end|>"
    assert Template.of(parts).parts == parts


def test_white_space_that_is_removed_on_one_side_alone_is_refused(tmp_path: Path) -> None:
    """Which no template here can say."""
    with pytest.raises(DataError, match="white space around the answer"):
        rendered(
            folder_of(
                PHI_3.replace(
                    "message['content'] + '<|end|>\n'}}{% endif", "message['content'].rstrip() + '<|end|>\n'}}{% endif"
                ),
                tmp_path,
            )
        )


@pytest.mark.parametrize("given", [5, {"a": 1}, [1], [{"name": "x"}], [{"name": "default", "template": 5}]])
def test_a_template_that_is_no_text_is_named(given: object, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="chat_template: must be a text"):
        rendered(folder_of("", tmp_path / "model", chat_template=given))
