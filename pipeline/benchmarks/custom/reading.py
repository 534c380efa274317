"""A user's sets: rows of questions with answers, or texts, each with what to call it in a message."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from pipeline.data import general_prompts, user_files
from pipeline.data.errors import DataError
from pipeline.data.qa_rows import Row
from pipeline.data.settings import TABLES, TEXTS, UserSet
from pipeline.data.sources import field

BLANK = re.compile("_{3,}")  # of a cloze sentence


@dataclass(frozen=True)
class UserRows:
    """What a set holds.

    Attributes:
        origin: where it came from, for messages
        rows: questions with their answers; empty where the set is of texts
        texts: texts; empty where the set is of questions
        places: what to call each row or text in a message
        digests: SHA-256 of each file
    """

    origin: str
    rows: tuple[Row, ...]
    texts: tuple[str, ...]
    places: tuple[str, ...]
    digests: dict[str, str]

    @property
    def content(self) -> Any:
        """A JSON value that is the same for equal content, wherever it came from."""
        return [[[row.question, row.answer, row.paraphrased, row.perturbed] for row in self.rows], self.texts]

    def faults(self) -> dict[int, str]:
        """By its number what is wrong with a row or text by itself: such ones can be left out."""
        every = [[row.question, row.answer, *row.perturbed, row.paraphrased or row.answer] for row in self.rows]
        found = {}
        for number, parts in enumerate(every or [[text] for text in self.texts]):
            blank = None if all(part.strip() for part in parts) else "an empty text"
            fault = blank or next(filter(None, map(user_files.fault, parts)), None)
            if fault:
                found[number] = fault
        return found


def files_of(one: UserSet) -> list[Path]:
    """The files that a set is read from.

    Raises:
        DataError: there are none, or one is of no kind that is read
    """
    path = one.path
    if path is None:
        return general_prompts.files(one.own_answers) if one.own_answers else []
    if path.suffix.lower() in (*TABLES, *TEXTS):
        if not path.is_file():
            raise DataError(f"{path}: {'is a folder' if path.is_dir() else 'there is no such file'}")
        return [path]
    if not path.is_dir():
        if not path.exists():
            raise DataError(f"{path}: there is no such folder")
        allowed = ", ".join((*TABLES, *TEXTS))
        kind = user_files.other_kind(path) or f"is no kind of file that is read; allowed: {allowed}"
        raise DataError(f"{path}: {kind}")
    files = sorted(file for file in path.rglob("*") if file.is_file())
    files = [file for file in files if not any(part.startswith(".") for part in file.relative_to(path).parts)]
    for file in files:
        if file.suffix.lower() not in TEXTS:
            message = f"neither {' nor '.join(TEXTS)}: extract its text, or move it out of the folder"
            raise DataError(f"{file}: is {message}")
    if not files:
        raise DataError(f"{path}: holds no file that ends in {' or '.join(TEXTS)}")
    return files


def read(one: UserSet) -> UserRows:
    """The rows of a set; a file that has not changed is read once.

    Of a set that target answers the rows are its prompts, in place of answers too: good for counting, no more.

    Raises:
        DataError: a file or row cannot be read, or there are no rows; the message names file and line or row
    """
    stats = [(str(file), file.stat()) for file in files_of(one)]
    return _read(one.model_dump_json(), tuple((name, stat.st_mtime_ns, stat.st_size) for name, stat in stats))


@lru_cache(maxsize=64)
def _read(settings: str, files: tuple[tuple[str, int, int], ...]) -> UserRows:
    one = UserSet.model_validate_json(settings)
    if one.own_answers is not None:
        prompts = [found for found in general_prompts.read(one.own_answers) for _ in range(one.own_answers.per_row)]
        asked = tuple(Row(prompt, prompt) for _, prompt in prompts)
        return UserRows("target's own answers", asked, (), tuple(place for place, _ in prompts), {})
    rows: list[Row] = []
    texts: list[str] = []
    places: list[str] = []
    digests = {}
    for name, _, _ in files:
        path = Path(name)
        content = user_files.content_of(path)
        digests[name] = hashlib.sha256(content).hexdigest()
        if path.suffix.lower() in TEXTS:
            texts.append(user_files.decode(content, path))
            places.append(name)
            continue
        for place, value in user_files.values(content, path, _columns(one), one.delimiter):
            places.append(place)
            if one.form == "texts":
                texts.append(value if isinstance(value, str) else field(value, one.text_key or "text", str, place))
            else:
                rows.append(_row(one, value, place))
    if not places:
        raise DataError(f"{one.path}: no rows")
    return UserRows(str(one.path), tuple(rows), tuple(texts), tuple(places), digests)


def _columns(one: UserSet) -> list[str]:
    """The columns that a CSV file of the set must have."""
    form: dict[str, list[str | None]] = {
        "questions": [one.question_key, one.answer_key],
        "messages": [one.messages_key],
        "texts": [one.text_key],
    }
    return [key for key in (*form[one.form], one.paraphrased_key, one.perturbed_key) if key is not None]


def _row(one: UserSet, value: Any, place: str) -> Row:
    if one.messages_key is not None:
        question, answer = _chat(field(value, one.messages_key, list, place), f"{place}: field {one.messages_key!r}")
    else:
        question, answer = (field(value, key, str, place) for key in (one.question_key, one.answer_key))
    paraphrased = None if one.paraphrased_key is None else field(value, one.paraphrased_key, str, place)
    wrong: list[str] = []
    if one.perturbed_key is not None:
        given = value.get(one.perturbed_key)
        wrong = [given] if isinstance(given, str) else field(value, one.perturbed_key, list, place)
        if not wrong or not all(isinstance(text, str) for text in wrong):
            raise DataError(f"{place}: field {one.perturbed_key!r} must be a text or a list of at least one text")
    return Row(question, answer, paraphrased, tuple(wrong))


def _chat(messages: list[Any], place: str) -> tuple[str, str]:
    """Question and answer of a chat of the two messages ``user`` and ``assistant``."""
    roles, texts = [], []
    for number, message in enumerate(messages):
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise DataError(f"{place}: message {number} has no 'role'")
        content = message.get("content")
        if isinstance(content, list) and all(isinstance(part, dict) and part.get("type") == "text" for part in content):
            parts = [part.get("text") for part in content]
            wrong = [type(text).__name__ for text in parts if not isinstance(text, str)]
            if wrong:
                raise DataError(f"{place}: message {number}: 'text' of a part must be a text, got {wrong[0]}")
            content = "".join(parts)
        if not isinstance(content, str):
            raise DataError(f"{place}: message {number}: 'content' must be a text, got {type(content).__name__}")
        roles.append(message["role"])
        texts.append(content)
    if roles != ["user", "assistant"]:
        message = f"a chat must be one message of 'user' and one of 'assistant', got {', '.join(roles) or 'none'}"
        raise DataError(f"{place}: {message}; a system prompt belongs to the model's template")
    return texts[0], texts[1]


def cloze(row: Row, place: str) -> Row:
    """A cloze sentence as its start and what fills the blank.

    Raises:
        DataError: it has no blank or several, or begins with it
    """
    parts = BLANK.split(row.question)
    if len(parts) != 2 or not parts[0].strip():
        raise DataError(f"{place}: a cloze sentence needs text and then one blank of at least three underscores")
    return Row(parts[0].rstrip(), row.answer.strip())
