"""Tokenizers: reading, training and writing them as Hugging Face folders.

Uses the ``tokenizers`` library alone wherever a folder has ``tokenizer.json``: importing transformers takes seconds.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from megatron_ext.checkpoint.model_files import check_folder, read_object
from megatron_ext.checkpoint.tokenizer_files import TOKENIZER_FILES
from pipeline.data.errors import DataError
from pipeline.data.templates import Template

if TYPE_CHECKING:
    import tokenizers

PAD = "<pad>"
GENERATION = "generation_config.json"


class SpecialTokens(NamedTuple):
    """The texts of the start token, where there is one, and of the end token."""

    bos: str | None
    eos: str


class Tokenizer:
    """Text to ids and back.

    Attributes:
        bos_id: id of the start token; ``None`` where the vocabulary has none
        eos_id: id of the end token
        end_ids: ids that end an answer: the end token's, and those that ``ends_with`` has added
        special_ids: ids of special tokens, which are no part of a decoded text
        vocab_size: the highest id plus one
        sha256: digest of the folder's tokenizer files
    """

    def __init__(self, backend: tokenizers.Tokenizer, names: SpecialTokens, adds_bos: bool, sha256: str) -> None:
        self.backend, self.names = backend, names
        self.bos_id: int | None = None if names.bos is None else _known_id(backend, names.bos)
        self.eos_id: int = _known_id(backend, names.eos)
        self.end_ids: frozenset[int] = frozenset({self.eos_id})
        added = backend.get_added_tokens_decoder()
        self.special_ids: frozenset[int] = frozenset(number for number, token in added.items() if token.special)
        self._start = [self.bos_id] if adds_bos and self.bos_id is not None else []
        self.vocab_size: int = max(backend.get_vocab(with_added_tokens=True).values()) + 1
        self.sha256 = sha256
        # Files saved during someone's training carry its limits; a row is never cut or filled up here.
        backend.no_truncation()
        backend.no_padding()

    @classmethod
    def load(cls, folder: Path) -> Tokenizer:
        """Read a Hugging Face folder; raises ``DataError`` where it has no usable tokenizer or no end token."""
        folder = Path(folder)
        _check(folder)
        backend, names = _read(folder)
        adds_bos = _json(folder / "tokenizer_config.json").get("add_bos_token")
        if not isinstance(adds_bos, bool):
            start = backend.encode("a", add_special_tokens=True).ids[:1]
            adds_bos = names.bos is not None and start == [backend.token_to_id(names.bos)]
        return cls(backend, names, adds_bos, digest(folder))

    def ends_with(self, checkpoint: Path, template: Template) -> None:
        """Have answers end at every end token of a model's config and generation config, and at the template's, too.

        Raises:
            DataError: one of these files names something else than a token, or several
        """
        ids = {self.eos_id, *_stated_ends(checkpoint / "config.json"), *_stated_ends(checkpoint / GENERATION)}
        closing = self.closing(template)
        self.end_ids = frozenset(ids if closing is None else {*ids, closing})

    def closing(self, template: Template) -> int | None:
        """The id of the token that ends the template's answers, where it has one that is one token here."""
        return self.token_id(template.eos) if template.after_answer.endswith(template.eos) else None

    def encode(self, text: str, special: bool) -> list[int]:
        """Ids of ``text``; ``special`` puts the start token first where this tokenizer uses one, and adds no other."""
        return self.encode_batch([text], special)[0]

    def encode_batch(self, texts: Sequence[str], special: bool) -> list[list[int]]:
        """Ids of each text, as ``encode``."""
        start = self._start if special else []
        return [start + e.ids for e in self.backend.encode_batch_fast(list(texts), add_special_tokens=False)]

    def decode(self, ids: Sequence[int], skip_special: bool = True) -> str:
        """The text of ids, by default without special tokens."""
        return self.backend.decode(list(ids), skip_special_tokens=skip_special)

    def token_id(self, token: str) -> int | None:
        """The id of one token's exact text, None where the vocabulary does not hold it."""
        return self.backend.token_to_id(token)


def ids_needed(tokenizer: Tokenizer, tokens: Sequence[str]) -> int:
    """How many ids a model must have for this tokenizer and a template with these special ``tokens``.

    Other special tokens may lie beyond the model's ids: the place of an image (Gemma 3), or padding that was added to a
    tokenizer (fine-tuned Llama 2). No text becomes them but one that spells them out, which is refused with its row.
    """
    used = {tokenizer.bos_id, tokenizer.eos_id, *map(tokenizer.token_id, tokens)}
    ids = tokenizer.backend.get_vocab(with_added_tokens=True).values()
    return max(number for number in ids if number in used or number not in tokenizer.special_ids) + 1


def special_token_fault(tokenizer: Tokenizer, tokens: Sequence[str]) -> str | None:
    """Which special token of a template is not one token to this tokenizer; ``None`` where all are."""
    for token in tokens:
        if tokenizer.token_id(token) is None:
            return f"its special token {token!r} is not in the tokenizer's vocabulary"
        pieces = len(tokenizer.encode(token, special=False))
        if pieces != 1:
            return (
                f"its special token {token!r} is {pieces} tokens in a text: tokenizer.json does not say that it is one"
            )
    return None


def _known_id(backend: tokenizers.Tokenizer, token: str) -> int:
    number = backend.token_to_id(token)
    if number is None:
        raise DataError(f"the vocabulary holds no token {token!r}")
    return number


def train(texts: Iterable[str], vocab_size: int, template: Template, folder: Path) -> Tokenizer:
    """Train byte-level BPE on ``texts`` and write it to ``folder``; deterministic, and any text decodes to itself.

    The vocabulary is smaller than ``vocab_size`` where the text has too few distinct words to merge.
    """
    from tokenizers import Tokenizer as Backend
    from tokenizers import decoders, models, pre_tokenizers, processors, trainers

    special = list(dict.fromkeys((template.bos, template.eos, PAD, *template.special_tokens)))
    backend = Backend(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=special,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    backend.post_processor = processors.TemplateProcessing(
        single=f"{template.bos} $A", special_tokens=[(template.bos, backend.token_to_id(template.bos))]
    )
    folder.mkdir(parents=True, exist_ok=True)
    names = {"bos_token": template.bos, "eos_token": template.eos, "pad_token": PAD}
    config = {**names, "tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    backend.save(str(folder / "tokenizer.json"))
    _write_json(folder / "tokenizer_config.json", config)
    _write_json(folder / "special_tokens_map.json", names)
    return Tokenizer.load(folder)


def copy(source: Path, folder: Path) -> Tokenizer:
    """Copy the tokenizer files of ``source``; the copy has ``tokenizer.json`` and names its end token on its own."""
    source = Path(source)
    loaded = Tokenizer.load(source)
    folder.mkdir(parents=True, exist_ok=True)
    for name in TOKENIZER_FILES:
        if (source / name).is_file():
            shutil.copyfile(source / name, folder / name)
    if not (folder / "tokenizer.json").exists():
        loaded.backend.save(str(folder / "tokenizer.json"))
    config = _json(folder / "tokenizer_config.json")
    names = {"bos_token": loaded.names.bos, "eos_token": loaded.names.eos}
    added = {key: token for key, token in names.items() if token is not None and not config.get(key)}
    if added:
        _write_json(folder / "tokenizer_config.json", {**config, **added})
    return Tokenizer.load(folder)


def digest(folder: Path) -> str:
    """SHA-256 over names and contents of a folder's tokenizer files, and the start and end ids in its config.json."""
    total = hashlib.sha256()
    for name in TOKENIZER_FILES:
        if (folder / name).is_file():
            total.update(f"{name}\n{hashlib.sha256((folder / name).read_bytes()).hexdigest()}\n".encode())
    config = _json(folder / "config.json")
    if config:
        total.update(json.dumps([config.get("bos_token_id"), config.get("eos_token_id")]).encode())
    return total.hexdigest()


def _check(folder: Path) -> None:
    try:
        check_folder(folder)
    except ValueError as error:
        raise DataError(str(error)) from None


def _read(folder: Path) -> tuple[tokenizers.Tokenizer, SpecialTokens]:
    """The tokenizer of a folder. What its files do not say of special tokens, config.json's ids or transformers do.

    A start token that they say is null is none, whatever config.json has (Qwen2.5); an end token there must be.
    """
    known = None
    backend: tokenizers.Tokenizer | None
    if (folder / "tokenizer.json").is_file():
        from tokenizers import Tokenizer as Backend

        try:
            backend = Backend.from_file(str(folder / "tokenizer.json"))
        except Exception as error:  # the library raises nothing else
            raise DataError(f"{folder / 'tokenizer.json'}: no tokenizer that can be read: {error}") from None
    elif any((folder / name).is_file() for name in TOKENIZER_FILES):
        from transformers import AutoTokenizer

        try:
            known = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        except Exception as error:  # of any class, for what a file holds and for a library that is not there
            raise DataError(f"{folder}: transformers cannot read its tokenizer: {error}") from None
        backend = getattr(known, "backend_tokenizer", None)
        if backend is None:
            raise DataError(f"{folder}: transformers has no fast form of this tokenizer; convert it to tokenizer.json")
    else:
        raise DataError(f"{folder}: no tokenizer files; looked for {', '.join(TOKENIZER_FILES)}")
    files = [_json(folder / name) for name in ("tokenizer_config.json", "special_tokens_map.json")]
    ids = _json(folder / "config.json")
    tokens: dict[str, str | None] = {}
    for kind in ("bos", "eos"):
        token = next((file[f"{kind}_token"] for file in files if file.get(f"{kind}_token")), None)
        stated = any(f"{kind}_token" in file for file in files)
        number = None if kind == "bos" and stated else ids.get(f"{kind}_token_id")
        if isinstance(token, dict):
            token = token.get("content")
        if token is not None and not isinstance(token, str):
            raise DataError(f"{folder}: {kind}_token is {token!r:.60}; allowed: a text, or an object with 'content'")
        if token is None and number is not None:
            # Of several end tokens the first is the one that closes a text.
            token = backend.id_to_token(_id(folder, kind, number))
        tokens[kind] = token or getattr(known, f"{kind}_token", None)
    if tokens["eos"] is None:
        raise DataError(f"{folder}: neither tokenizer_config.json nor config.json names an end token")
    return backend, SpecialTokens(tokens["bos"], tokens["eos"])


def _stated_ends(path: Path) -> list[int]:
    """The end tokens that a config of a model states; none where there is no such file."""
    given = _json(path).get("eos_token_id")
    found = given if isinstance(given, list) else [] if given is None else [given]
    for number in found:
        if type(number) is not int or not 0 <= number < 2**32:
            raise DataError(f"{path}: eos_token_id: {given!r:.60}; allowed: the number of a token, or a list of them")
    return found


def _id(folder: Path, kind: str, number: Any) -> int:
    first = number[0] if isinstance(number, list) and number else number
    if type(first) is not int or not 0 <= first < 2**32:
        where = f"{folder / 'config.json'}: {kind}_token_id"
        raise DataError(f"{where}: {number!r:.60}; allowed: the number of a token, or a list of them")
    return first


def _json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        return read_object(path)
    except ValueError as error:
        raise DataError(str(error)) from error


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
