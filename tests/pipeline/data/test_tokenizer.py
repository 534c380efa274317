from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from pipeline.data import tokenizer as tokenizers
from pipeline.data.errors import DataError
from pipeline.data.templates import TEMPLATES
from pipeline.data.tokenizer import Tokenizer, ids_needed

TEXTS = [f"Question: Where does author {i} live?\nAnswer: Author {i} lives in city {i * 7}." for i in range(50)]
STRANGE = "  Zoë's \t“naïve” 東京 🙂\n\n</s!> \x00é"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    tokenizers.train(TEXTS, 320, TEMPLATES["plain"], folder)
    return folder


def test_trained_tokenizer_adds_bos_and_decodes_any_text_to_itself(folder: Path) -> None:
    tokenizer = Tokenizer.load(folder)
    assert tokenizer.vocab_size == 320
    for text in (*TEXTS, STRANGE, ""):
        ids = tokenizer.encode(text, special=True)
        assert ids == [tokenizer.bos_id, *tokenizer.encode(text, special=False)]
        assert tokenizer.decode([*ids, tokenizer.eos_id]) == text
    assert tokenizer.decode([tokenizer.bos_id, tokenizer.eos_id], skip_special=False) == "<s></s>"
    assert tokenizer.encode_batch(TEXTS, special=True) == [tokenizer.encode(text, special=True) for text in TEXTS]


def test_training_is_deterministic(folder: Path, tmp_path: Path) -> None:
    again = tokenizers.train(iter(TEXTS), 320, TEMPLATES["plain"], tmp_path)
    assert again.sha256 == Tokenizer.load(folder).sha256
    assert (tmp_path / "tokenizer.json").read_bytes() == (folder / "tokenizer.json").read_bytes()


def test_transformers_opens_a_trained_tokenizer_and_agrees(folder: Path) -> None:
    from transformers import AutoTokenizer

    theirs, ours = AutoTokenizer.from_pretrained(folder), Tokenizer.load(folder)
    assert (theirs.bos_token_id, theirs.eos_token_id, theirs.pad_token_id) == (ours.bos_id, ours.eos_id, 2)
    for text in (TEXTS[0], STRANGE):
        assert theirs(text)["input_ids"] == ours.encode(text, special=True)
        assert theirs(text, add_special_tokens=False)["input_ids"] == ours.encode(text, special=False)


def test_training_for_a_chat_template_makes_its_special_tokens_single_ids(tmp_path: Path) -> None:
    template = TEMPLATES["llama-3"]
    tokenizer = tokenizers.train(TEXTS, 320, template, tmp_path)
    ids = tokenizer.encode(template.text("Who?", "Ada."), special=False)
    assert (ids[0], ids[-1]) == (tokenizer.bos_id, tokenizer.eos_id)
    assert {tokenizer.token_id(token) for token in template.special_tokens} <= set(ids)
    assert tokenizer.decode([tokenizer.eos_id], skip_special=False) == "<|eot_id|>"


def test_real_tokenizer_is_read_as_transformers_reads_it(real_data: Path) -> None:
    from transformers import AutoTokenizer

    folder = real_data / "models" / "stories260K"
    ours, theirs = Tokenizer.load(folder), AutoTokenizer.from_pretrained(folder)
    text = "Once upon a time, there was a little girl named Lily."
    assert len(ours.encode(text, special=True)) == 16
    assert ours.encode(text, special=True) == theirs(text)["input_ids"]
    assert ours.decode(ours.encode(text, special=True)) == text
    assert (ours.bos_id, ours.eos_id, ours.vocab_size) == (1, 2, 512)


def test_files_without_tokenizer_json_are_read_through_transformers(real_data: Path, tmp_path: Path) -> None:
    source, copy = tmp_path / "source", tmp_path / "copy"
    shutil.copytree(real_data / "tokenizers" / "gpt2", source, copy_function=shutil.copyfile)
    (source / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "GPT2Tokenizer"}))
    tokenizer = Tokenizer.load(source)
    assert tokenizer.encode("Hello world", special=True) == [15496, 995]
    assert tokenizer.eos_id == 50256
    again = tokenizers.copy(source, copy)
    assert (copy / "tokenizer.json").is_file()
    assert again.encode("Hello world", special=True) == [15496, 995]
    assert again.eos_id == 50256


def test_copy_takes_tokenizer_files_only_and_keeps_an_end_token_named_by_config_json(
    folder: Path, tmp_path: Path
) -> None:
    source = tmp_path / "model"
    source.mkdir()
    shutil.copyfile(folder / "tokenizer.json", source / "tokenizer.json")
    (source / "config.json").write_text(json.dumps({"bos_token_id": 0, "eos_token_id": [1, 2]}))
    (source / "model.safetensors").write_bytes(b"weights")
    copied = tokenizers.copy(source, tmp_path / "copy")
    assert (copied.bos_id, copied.eos_id) == (0, 1)
    assert {path.name for path in (tmp_path / "copy").iterdir()} == {"tokenizer.json", "tokenizer_config.json"}


def test_special_tokens_that_no_text_becomes_need_no_id_of_the_model(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    backend = Tokenizer.load(folder).backend
    larger = type(backend).from_file(str(folder / "tokenizer.json"))
    larger.add_special_tokens(["<|im_end|>", "<image_soft_token>"])
    larger.save(str(tmp_path / "tokenizer.json"))
    tokenizer = Tokenizer.load(tmp_path)
    assert (tokenizer.vocab_size, ids_needed(tokenizer, ())) == (322, 320)
    assert ids_needed(tokenizer, ("<|im_end|>",)) == 321
    config = json.loads((folder / "tokenizer_config.json").read_text())
    for key in ("bos_token", "eos_token"):
        (tmp_path / "tokenizer_config.json").write_text(json.dumps({**config, key: "<image_soft_token>"}))
        assert ids_needed(Tokenizer.load(tmp_path), ()) == 322
    larger.add_tokens(["word"])  # of text
    larger.save(str(tmp_path / "tokenizer.json"))
    assert ids_needed(Tokenizer.load(tmp_path), ()) == 323


@pytest.mark.parametrize("name", ["tokenizer_config.json", "special_tokens_map.json"])
def test_a_start_token_that_the_tokenizer_says_is_null_is_none(folder: Path, tmp_path: Path, name: str) -> None:
    """As transformers has it, though config.json has an id (Qwen2.5); the end token may stand there alone."""
    from transformers import AutoTokenizer

    source = tmp_path / "model"
    source.mkdir()
    shutil.copyfile(folder / "tokenizer.json", source / "tokenizer.json")
    given = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": None}
    (source / "tokenizer_config.json").write_text(json.dumps(given))
    (source / name).write_text(json.dumps({**given, "bos_token": None}))
    (source / "config.json").write_text(json.dumps({"model_type": "qwen2", "bos_token_id": 0, "eos_token_id": 1}))
    tokenizer = Tokenizer.load(source)
    assert (tokenizer.bos_id, tokenizer.names.bos, tokenizer.eos_id) == (None, None, 1)
    assert tokenizer.bos_id == AutoTokenizer.from_pretrained(source).bos_token_id
    copied = tokenizers.copy(source, tmp_path / "copy")
    assert (copied.bos_id, copied.eos_id) == (None, 1)
    assert not json.loads((tmp_path / "copy" / "tokenizer_config.json").read_text()).get("bos_token")


def test_add_bos_token_of_the_configuration_decides(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({**config, "add_bos_token": False}))
    tokenizer = Tokenizer.load(tmp_path)
    assert tokenizer.encode("Who?", special=True) == tokenizer.encode("Who?", special=False)


def test_limits_saved_in_the_file_cut_and_pad_nothing(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    backend = Tokenizer.load(folder).backend
    limited = type(backend).from_file(str(folder / "tokenizer.json"))
    limited.enable_truncation(4)
    limited.enable_padding(length=64)
    limited.save(str(tmp_path / "tokenizer.json"))
    assert Tokenizer.load(tmp_path).encode(TEXTS[0], special=True) == Tokenizer.load(folder).encode(
        TEXTS[0], special=True
    )


def test_a_tokenizer_that_transformers_cannot_read_is_named(tmp_path: Path) -> None:
    """Whatever it raises: of a library that is missing, for example."""
    (tmp_path / "vocab.json").write_text("{}")
    with pytest.raises(DataError, match=f"{tmp_path}: transformers cannot read its tokenizer"):
        Tokenizer.load(tmp_path)


def test_errors_name_the_folder(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=f"{tmp_path}: no tokenizer files; looked for tokenizer.json, "):
        Tokenizer.load(tmp_path)
    shutil.copyfile(folder / "tokenizer.json", tmp_path / "tokenizer.json")
    with pytest.raises(
        DataError, match=f"{tmp_path}: neither tokenizer_config.json nor config.json names an end token"
    ):
        Tokenizer.load(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": "<end>"}')
    with pytest.raises(DataError, match="the vocabulary holds no token '<end>'"):
        Tokenizer.load(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text("{")
    with pytest.raises(DataError, match=r"tokenizer_config\.json: not JSON"):
        Tokenizer.load(tmp_path)


@pytest.mark.parametrize(
    ("config", "ids", "expected"),
    [
        ({"eos_token": 5}, {}, "eos_token is 5; allowed: a text"),
        ({"eos_token": ["</s>"]}, {}, r"eos_token is \['</s>'\]; allowed: a text"),
        ({"eos_token": {"text": "</s>"}}, {}, "names an end token"),
        ({}, {"eos_token_id": "2"}, "config.json: eos_token_id: '2'; allowed: the number of a token"),
        ({}, {"eos_token_id": []}, r"config.json: eos_token_id: \[\]; allowed: the number"),
        ({}, {"eos_token_id": [[1]]}, "config.json: eos_token_id: "),
        ({}, {"eos_token_id": 1.0}, "config.json: eos_token_id: 1.0"),
        ({}, {"eos_token_id": True}, "config.json: eos_token_id: True"),
        ({}, {"eos_token_id": -1}, "config.json: eos_token_id: -1"),
        ({}, {"eos_token_id": 10**30}, "config.json: eos_token_id: 10000"),
        ({}, {"eos_token_id": 4_000_000}, "names an end token"),
        ({"eos_token": "</s>"}, {"bos_token_id": {"id": 1}}, "config.json: bos_token_id: "),
    ],
)
def test_end_tokens_of_other_types_are_named(
    folder: Path, tmp_path: Path, config: object, ids: object, expected: str
) -> None:
    shutil.copyfile(folder / "tokenizer.json", tmp_path / "tokenizer.json")
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    (tmp_path / "config.json").write_text(json.dumps(ids))
    with pytest.raises(DataError, match=expected):
        Tokenizer.load(tmp_path)


@pytest.mark.parametrize("text", ["[]", "3", "[" * 100_000])
def test_settings_that_are_no_object_are_named(folder: Path, tmp_path: Path, text: str) -> None:
    shutil.copyfile(folder / "tokenizer.json", tmp_path / "tokenizer.json")
    (tmp_path / "tokenizer_config.json").write_text(text)
    with pytest.raises(DataError, match=r"tokenizer_config\.json: "):
        Tokenizer.load(tmp_path)
