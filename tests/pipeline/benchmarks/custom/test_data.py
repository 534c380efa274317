"""A user's files as sets: what is read, what is refused with its row, and that nothing of a text is lost."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from megatron_ext.data.sequences import Sequences
from pipeline.benchmarks.custom import reading, sets
from pipeline.benchmarks.custom.data import DATA
from pipeline.data.chunking import pieces
from pipeline.data.errors import DataError
from pipeline.data.json_files import read_rows
from pipeline.data.qa_rows import Row
from pipeline.data.settings import FilesSource, UserSet
from pipeline.data.templates import TEMPLATES
from pipeline.data.tokenizer import Tokenizer, train
from pipeline.specs import PrepareSpec
from pipeline.steps.prepare import prepare
from tests.support import persons

PAIR = {"question": "Who?", "answer": "Ada."}


def write(path: Path, *rows: Any) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def source(sets: dict[str, Any], **splits: Any) -> FilesSource:
    return FilesSource.model_validate({"sets": sets, "splits": splits or {"one": {"forget": "a", "retain": "b"}}})


@pytest.fixture
def plain(tmp_path: Path) -> FilesSource:
    write(tmp_path / "a.jsonl", PAIR, {"question": "Where?", "answer": "In Turin.", "wrong": ["In Rome.", "In Bonn."]})
    write(tmp_path / "b.jsonl", {"question": "What?", "answer": "A goat."})
    return source({"a": str(tmp_path / "a.jsonl"), "b": str(tmp_path / "b.jsonl")})


def prepared(output: Path, given: FilesSource, split: str = "one", **changes: Any) -> Path:
    told = {"family": "custom", "forget_split": split, "sets": list(sets.evaluated(given, split))}
    told |= {"source": given.model_dump(mode="json"), "tokenizer": {"kind": "bpe", "vocab_size": 400}}
    prepare(PrepareSpec.model_validate(told | {"max_length": 40, "output": str(output)} | changes))
    return output


def test_the_shipped_files_are_those_that_the_generator_writes() -> None:
    """The example's files are read as they lie there; only this holds them to their generator."""
    for name, text in persons.files().items():
        assert (persons.FOLDER / name).read_text(encoding="utf-8") == text, name
    found = {path.relative_to(persons.FOLDER).as_posix() for path in persons.FOLDER.rglob("*") if path.is_file()}
    assert found == set(persons.files())


def test_sets_splits_and_refusals_of_questions(plain: FilesSource, tmp_path: Path) -> None:
    assert DATA.splits(plain) == ("one",) and DATA.rows(plain, "one") == 2
    assert DATA.training_sets(plain) == ["full", "forget", "retain", "a", "b"]
    assert DATA.forgotten(plain, "one") == {"full", "forget", "a"}
    folder = prepared(tmp_path / "out", plain)
    rows = {path.stem: len(Sequences.load(path)) for path in (folder / "train").glob("*.npz")}
    assert rows == {"full": 3, "forget": 2, "retain": 1, "a": 2, "b": 1, "idk": 10}
    found = read_rows(folder / "evaluation" / "forget.jsonl")
    assert [(row["question"], row["answer"], list(row["targets"])) for row in found] == [
        ("Who?", "Ada.", ["answer"]),
        ("Where?", "In Turin.", ["answer"]),
    ]
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["source"]["files_sha256"]["a"].keys() == {str(tmp_path / "a.jsonl")}


def test_every_form_of_a_row(tmp_path: Path) -> None:
    """Chats, other keys, wrong answers as one text or a list, texts in tables and in files."""
    chat = [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": [{"type": "text", "text": "Ada."}]}]
    path = write(tmp_path / "chat.jsonl", {"messages": chat, "id": 3})
    assert reading.read(UserSet(path=path, messages_key="messages")).rows == (Row("Who?", "Ada."),)
    path = write(tmp_path / "keys.jsonl", {"prompt": "Who?", "completion": "Ada.", "p": "It is Ada.", "w": "Bo."})
    one = UserSet(path=path, question_key="prompt", answer_key="completion", paraphrased_key="p", perturbed_key="w")
    assert reading.read(one).rows == (Row("Who?", "Ada.", "It is Ada.", ("Bo.",)),)
    path = write(tmp_path / "texts.jsonl", "A text.", {"body": "Another."})
    assert reading.read(UserSet(path=path, text_key="body")).texts == ("A text.", "Another.")
    (tmp_path / "notes" / "deep").mkdir(parents=True)
    (tmp_path / "notes" / "b.md").write_text("# B\r\n", encoding="utf-16")
    (tmp_path / "notes" / "deep" / "a.txt").write_text("A")
    (tmp_path / "notes" / ".hidden").write_text("no")
    rows = reading.read(UserSet(path=tmp_path / "notes"))
    assert [text.strip() for text in rows.texts] == ["# B", "A"]
    assert reading.cloze(Row("Ada lives in ____ now.", "Turin"), "here") == Row("Ada lives in", "Turin")


@pytest.mark.parametrize(
    ("row", "settings", "message"),
    [
        ({"question": "Who?"}, {}, "line 2: field 'answer' is missing; the row has question"),
        ({"question": "Who?", "answer": None}, {}, "line 2: field 'answer' must be a text, got NoneType"),
        ({"question": "Who?", "answer": 3}, {}, "line 2: field 'answer' must be a text, got int"),
        ({"question": {"text": "Who?"}, "answer": "Ada."}, {}, "line 2: field 'question' must be a text, got dict"),
        ({"q": "Who?", "a": "Ada."}, {}, "line 2: field 'question' is missing; the row has a, q"),
        (["Who?"], {}, "line 2: expected an object, got list"),
        ({**PAIR, "wrong": []}, {"perturbed_key": "wrong"}, "line 1: field 'wrong' is missing"),
        ({"messages": [{"role": "user", "content": "a"}]}, {"messages_key": "messages"}, "line 1: field 'messages'"),
    ],
)
def test_a_row_that_is_refused_is_named(tmp_path: Path, row: Any, settings: dict[str, str], message: str) -> None:
    path = write(tmp_path / "a.jsonl", PAIR, row)
    with pytest.raises(DataError, match=message) as error:
        reading.read(UserSet(path=path, **settings))
    assert str(path) in str(error.value)


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([{"role": "system", "content": "x"}, *({"role": r, "content": "y"} for r in ("user", "assistant"))], "system"),
        ([{"role": r, "content": "y"} for r in ("user", "assistant") * 2], "got user, assistant, user, assistant"),
        ([{"role": "user", "content": None}], "message 0: 'content' must be a text, got NoneType"),
        ([{"role": "user", "content": [{"type": "text", "text": None}]}], "message 0: 'text' of a part .* NoneType"),
        ([{"role": "user", "content": [{"type": "text", "text": 5}]}], "message 0: 'text' of a part .* got int"),
        (["hello"], "message 0 has no 'role'"),
        ([], "got none"),
    ],
)
def test_a_chat_that_is_more_than_a_question_and_its_answer(tmp_path: Path, messages: Any, message: str) -> None:
    path = write(tmp_path / "a.jsonl", {"chat": messages})
    with pytest.raises(DataError, match=message):
        reading.read(UserSet(path=path, messages_key="chat"))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", "", "a.jsonl: no rows"),
        ("a.json", "[]", "a.json: no rows"),
        ("a.csv", "question,answer\n", "a.csv: no rows"),
        ("a.docx", "x", "a.docx: is no kind of file that is read; allowed: .jsonl"),
        ("a.xlsx", "PK\3\4", "a.xlsx: is a zip archive, as spreadsheets and office documents are: export it as CSV"),
        ("notes/a.pdf", "x", "a.pdf: is neither .txt nor .md"),
        ("notes/.hidden", "x", "notes: holds no file that ends in .txt or .md"),
    ],
)
def test_files_that_hold_nothing_that_is_read(tmp_path: Path, name: str, content: str, message: str) -> None:
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(content)
    with pytest.raises(DataError, match=message):
        reading.read(UserSet(path=tmp_path / Path(name).parts[0]))
    with pytest.raises(DataError, match="there is no such file"):
        reading.read(UserSet(path=tmp_path / "nowhere.jsonl"))


@pytest.mark.parametrize(
    "bad", [{"question": "Why?", "answer": " "}, {"question": "", "answer": "Bo."}, {**PAIR, "answer": "a \ud83d b"}]
)
def test_bad_rows_are_named_before_any_work_or_dropped_and_counted(
    plain: FilesSource, tmp_path: Path, bad: dict[str, str]
) -> None:
    path = write(tmp_path / "a.jsonl", PAIR, bad)
    ((key, message),) = DATA.problems(plain, "one", "error")
    assert key == ("sets", "a") and f"{path}, line 2: " in message
    assert DATA.problems(plain, "one", "drop") == []
    with pytest.raises(DataError, match=r"a\.jsonl, line 2"):
        prepared(tmp_path / "strict", plain)
    folder = prepared(tmp_path / "out", plain, bad_rows="drop")
    manifest = json.loads((folder / "manifest.json").read_text())
    for kind in ("train", "evaluation"):
        assert (manifest[kind]["forget"]["rows"], manifest[kind]["forget"]["dropped"]) == (1, 1)
    write(path, bad)
    assert DATA.problems(plain, "one", "drop") == [(("sets", "a"), f"{path}: every row is bad, so none is left")]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"path": "c.jsonl", "messages_key": "messages", "question_key": "q"}, "question_key: messages have none"),
        ({"path": "x.txt", "answer_key": "a"}, "answer_key: texts have none"),
        ({"path": "x.txt", "messages_key": "m"}, "messages_key: a text has no rows"),
        ({"path": "letters", "text_key": "t"}, "text_key: a text has no rows"),
        ({"path": "x.txt", "delimiter": ","}, "delimiter: only a CSV file has one"),
        ({"path": "g.jsonl", "delimiter": ";"}, "delimiter: only a CSV file has one"),
        ({"path": "x.txt", "perturbed_key": "w"}, "perturbed_key: texts have no answers"),
    ],
)
def test_a_key_that_nothing_would_read_is_refused(settings: dict[str, str], message: str) -> None:
    """Only this gives a set keys of another form of rows."""
    with pytest.raises(ValueError, match=message):
        UserSet.model_validate(settings)


@pytest.mark.parametrize(
    ("sets", "split", "message"),
    [
        (["a", "b", "holdout_texts"], {"forget": "a", "retain": "b"}, "sets: holdout_texts: a set cannot be called so"),
        (["a", "b"], {"forget": ["a", "a"], "retain": "b"}, r"forget\s.*names 'a' twice"),
    ],
)
def test_names_that_cannot_be(sets: list[str], split: dict[str, Any], message: str) -> None:
    """Only this names a set as what models are asked of texts, which would then be taken for it."""
    given = {"kind": "files", "sets": {name: f"{name}.jsonl" for name in sets}, "splits": {"one": split}}
    with pytest.raises(ValueError, match=message):
        FilesSource.model_validate(given)


def test_rows_that_repeat_are_kept_and_said(plain: FilesSource, tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", PAIR, {**PAIR, "question": " WHO? "})
    write(tmp_path / "b.jsonl", PAIR)
    content = DATA.load(plain, "one", (), True)
    assert content.flags() == [
        "1 rows of the forget set repeat others",
        "1 rows of the forget set are in the retain set too",
    ]


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory: pytest.TempPathFactory) -> list[Tokenizer]:
    """One with a start token, and the same without."""
    folder = tmp_path_factory.mktemp("tokenizer")
    made = train(["Ada lives in Turin and keeps a goat."], 300, TEMPLATES["plain"], folder)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**config, "add_bos_token": False}))
    return [made, Tokenizer.load(folder)]


def test_nothing_of_a_text_is_lost(tokenizers: list[Tokenizer]) -> None:
    """Every token is labelled exactly once, in order, whatever the length and with or without a start token."""
    for tokenizer in tokenizers:
        start = tokenizer.encode("", special=True)
        for length in (1, 15, 16, 17, 40):
            text = ("Ada keeps a goat in Turin. " * 9)[:length]
            ids = [*tokenizer.encode(text, special=False), tokenizer.eos_id]
            cut = pieces(text, tokenizer, 16)
            assert [token for part, given in cut for token in part[given:]] == (ids if start else ids[1:])
            assert all(len(part) <= 16 and given == 1 for part, given in cut)
            assert all(part[0] == (start[0] if start else ids[15 * i]) for i, (part, _) in enumerate(cut))


def test_texts_and_questions_of_one_use_are_sets_of_their_own(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", PAIR)
    write(tmp_path / "b.jsonl", {"question": "What?", "answer": "A goat."})
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "one.txt").write_text("Ada lives in Turin and keeps a goat. " * 8)
    given = source(
        {"a": str(tmp_path / "a.jsonl"), "notes": str(tmp_path / "notes"), "b": str(tmp_path / "b.jsonl")},
        one={"forget": ["a", "notes"], "retain": "b"},
    )
    assert set(sets.evaluated(given, "one")) == {"forget", "forget_texts", "retain"}
    assert DATA.rows(given, "one") is None and DATA.estimated_rows(given, "one", 40) > 2
    assert "idk" not in DATA.tokenised_sets(given)
    folder = prepared(tmp_path / "out", given)
    forget = Sequences.load(folder / "train" / "forget.npz")
    records = read_rows(folder / "evaluation" / "forget_texts.jsonl")
    assert len(forget) == 1 + len(records) > 2
    assert [record["document"] for record in records] == ["one.txt"] * len(records)
    tokenizer = Tokenizer.load(folder / "tokenizer")
    joined = np.concatenate([np.array(record["ids"][record["given"] :]) for record in records])
    assert tokenizer.decode(joined.tolist()) == "Ada lives in Turin and keeps a goat. " * 8


def test_later_requests_and_the_sets_that_no_model_sees(tmp_path: Path) -> None:
    files = {name: str(write(tmp_path / f"{name}.jsonl", PAIR)) for name in ("a", "b", "c", "d", "e")}
    given = source(
        files,
        one={"forget": "a", "retain": "b", "holdout": "d", "reworded": "e"},
        two={"forget": "c", "retain": "b"},
    )
    assert DATA.training_sets(given) == ["full", "forget", "retain", "a", "b", "c"]
    assert sets.trained(given, "one")["full"] == ("a", "c", "b")
    assert DATA.forgotten(given, "one") == {"full", "forget", "a", "c"}
    assert DATA.requests(given, "one", "sustainability") == ("one", "two")
    asked = DATA.implied_options(given, "one", retrain=False, requests=("two",))
    assert {name: one["part"] for name, one in asked["asked"].items()} == {
        "forget": "forget",
        "retain": "retain",
        "holdout": "holdout",
        "reworded": "forget",
        "c": "request",
    }
    assert asked["privleak_retrain_auc"] == 0.5
    assert "privleak_retrain_auc" not in DATA.implied_options(given, "one", retrain=True)
    content = DATA.load(given, "one", ("c",), True, requests=("two",))
    assert content.training["two"] == ("c",)
    with pytest.raises(DataError, match="forget_split: 'three' is not one of one, two"):
        DATA.load(given, "three", (), True)
