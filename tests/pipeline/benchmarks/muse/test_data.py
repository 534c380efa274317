"""MUSE's data: which files are read, how raw text is cut, and what a prepared folder holds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from megatron_ext.data.sequences import Sequences
from pipeline.benchmarks.muse.data import DATA, EVALUATED
from pipeline.benchmarks.muse.passages import MOST, as_rows, passages
from pipeline.benchmarks.muse.prompt import prompt
from pipeline.benchmarks.muse.synthetic import SyntheticNewsSource
from pipeline.benchmarks.request_sets import REQUEST
from pipeline.data.chunking import chunks
from pipeline.data.errors import DataError
from pipeline.data.settings import BpeTokenizer, FolderSource, FolderTokenizer
from pipeline.data.templates import TEMPLATES
from pipeline.data.tokenizer import Tokenizer, train
from pipeline.specs import PrepareSpec
from pipeline.steps.prepare import prepare

SETS = [name for name in EVALUATED if not name.startswith(REQUEST)]
QA = [{"question": "Who?", "answer": "Ada"}]
FILES: dict[str, Any] = {
    "raw/forget": ["The first text. " * 9, "Another one."],
    "raw/retain1": ["A text to keep."],
    "raw/retain2": ["A second text to keep."],
    "verbmem/forget": [{"prompt": "The first", "gt": "text. The first text."}],
    "knowmem/forget_qa": QA,
    "knowmem/forget_qa_icl": [{"question": "When?", "answer": "Now"}, {"question": "Where?", "answer": "Here"}],
    "knowmem/retain_qa": QA,
    "knowmem/retain_qa_icl": QA,
    "privleak/forget": ["The first text. " * 9],
    "privleak/holdout": [{"text": "Never seen."}],
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, rows in FILES.items():
        write(tmp_path, name, rows)
    return tmp_path


def write(folder: Path, name: str, rows: Any) -> None:
    path = folder / f"{name}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(rows))


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    texts = [text for text in FILES["raw/forget"]]
    return train(texts, 300, TEMPLATES["plain"], tmp_path_factory.mktemp("tokenizer"))


def spec(source: Any, output: Path, **options: Any) -> PrepareSpec:
    given = {"forget_split": "forget", "sets": SETS, "tokenizer": BpeTokenizer(vocab_size=300), "max_length": 32}
    return PrepareSpec(family="muse", source=source, output=output, **{**given, **options})


def test_the_prompt_is_muses() -> None:
    shots = [("When?", "Now"), ("Where?", "Here")]
    expected = "Question: When?\nAnswer: Now\n\nQuestion: Where?\nAnswer: Here\n\nQuestion: Who?\nAnswer: "
    assert prompt(shots, "Who?") == expected


def test_chunks_hold_the_whole_text_once(tokenizer: Tokenizer) -> None:
    texts = FILES["raw/forget"]
    ids = tokenizer.encode("\n\n".join(texts), special=False)
    found = chunks(texts, tokenizer, 11)
    rows = [found.row(i)[0].tolist() for i in range(len(found))]
    assert [row[0] for row in rows] == [tokenizer.bos_id] * len(rows) and set(found.prompt_lengths) == {1}
    assert [i for row in rows for i in row[1:]] == ids
    assert {len(row) for row in rows[:-1]} == {11} and len(rows) == -(-len(ids) // 10)


def test_a_folder_with_everything(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    summary = prepare(spec(FolderSource(path=folder), out))
    manifest = json.loads((out / "manifest.json").read_text())
    assert list(manifest["train"]) == ["full", "forget", "retain"] and list(manifest["evaluation"]) == SETS
    assert summary["flags"] == []
    for name, files in (("forget", "forget"), ("retain", "retain1")):
        sequences = Sequences.load(out / "train" / f"{name}.npz")
        expected = chunks(FILES[f"raw/{files}"], Tokenizer.load(out / "tokenizer"), 32)
        assert sequences.sha256() == expected.sha256()
    assert manifest["train"]["full"]["origin"].count(" + ") == 2  # both retain sets
    rows = [json.loads(line) for line in (out / "evaluation" / "knowmem_forget.jsonl").read_text().splitlines()]
    assert rows == [{"index": 0, **QA[0], "shots": [["When?", "Now"], ["Where?", "Here"]]}]
    rows = [json.loads(line) for line in (out / "evaluation" / "privleak_holdout.jsonl").read_text().splitlines()]
    assert rows == [{"index": 0, "text": "Never seen."}]


def test_the_other_names_of_a_release(folder: Path, tmp_path: Path) -> None:
    (folder / "raw" / "retain1.json").unlink()
    (folder / "raw" / "retain2.json").rename(folder / "raw" / "retain.json")
    (folder / "knowmem" / "retain_qa.json").rename(folder / "knowmem" / "retain2_qa.json")
    prepare(spec(FolderSource(path=folder), tmp_path / "out"))
    origin = json.loads((tmp_path / "out" / "manifest.json").read_text())["train"]["full"]["origin"]
    assert origin.count("retain.json") == 1


def test_evaluation_alone_needs_no_training_files(folder: Path, tokenizer: Tokenizer, tmp_path: Path) -> None:
    for name in ("forget", "retain1", "retain2"):
        (folder / "raw" / f"{name}.json").unlink()
    own = tmp_path / "own"
    tokenizer.backend.save(str(tmp_path / "tokenizer.json"))
    own.mkdir()
    (tmp_path / "tokenizer.json").rename(own / "tokenizer.json")
    (own / "tokenizer_config.json").write_text('{"bos_token": "<s>", "eos_token": "</s>"}')
    given = {"tokenizer": FolderTokenizer(path=own)}
    prepare(spec(FolderSource(path=folder), tmp_path / "out", training=False, **given))
    assert json.loads((tmp_path / "out" / "manifest.json").read_text())["train"] == {}
    with pytest.raises(DataError, match=r"has neither raw/forget\.json nor raw/forget\.jsonl"):
        prepare(spec(FolderSource(path=folder), tmp_path / "out", **given))


def test_folds_read_their_own_files(folder: Path) -> None:
    assert ("sust/forget_3",) in DATA.files("sust-3", SETS, training=True)
    assert ("scal/forget_2",) in DATA.files("scal-2", SETS, training=True)
    assert DATA.files("scal-2", SETS, training=False) == [names for name in SETS for names in EVALUATED[name]]


def test_parquet_as_the_hub_has_it(folder: Path, tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet", reason="reads the hub's files")
    import pyarrow

    (folder / "raw" / "forget.json").unlink()
    table = pyarrow.Table.from_pylist([{"text": text} for text in FILES["raw/forget"]])
    parquet.write_table(table, folder / "raw" / "forget-00000-of-00001.parquet")
    content = DATA.load(FolderSource(path=folder), "forget", SETS, training=True)
    assert content.training["forget"].texts == FILES["raw/forget"]
    (folder / "raw" / "forget-00000-of-00001.parquet").write_bytes(b"PAR1 and nothing else")
    with pytest.raises(DataError, match=r"forget-00000-of-00001\.parquet: not a Parquet file"):
        DATA.load(FolderSource(path=folder), "forget", SETS, training=True)


@pytest.mark.parametrize(
    ("name", "rows", "message"),
    [
        ("verbmem/forget", [{"prompt": "x"}], r"verbmem/forget\.json, row 0: field 'gt' is missing"),
        ("verbmem/forget", [], r"verbmem/forget\.json: no rows"),
        ("knowmem/forget_qa", [*QA, {"question": "x", "answer": 3}], r"row 1: field 'answer' must be a text, got int"),
        ("knowmem/forget_qa_icl", [{"question": " ", "answer": "y"}], r"row 0: field 'question' is blank"),
        ("privleak/holdout", [{"txt": "x"}], r"row 0: field 'text' is missing; the row has txt"),
        ("raw/forget", ["x", ""], r"raw/forget\.json, row 1: no token: the text is blank \(bad_rows: drop"),
        ("raw/forget", [1], r"raw/forget\.json, row 0: expected an object, got int"),
    ],
)
def test_bad_rows_are_named(folder: Path, tmp_path: Path, name: str, rows: Any, message: str) -> None:
    write(folder, name, rows)
    with pytest.raises(DataError, match=message):
        prepare(spec(FolderSource(path=folder), tmp_path / "out"))


def test_blank_texts_can_be_dropped_and_common_ones_are_flagged(folder: Path, tmp_path: Path) -> None:
    write(folder, "raw/forget", ["x", "", "A text to keep."])
    summary = prepare(spec(FolderSource(path=folder), tmp_path / "out", bad_rows="drop"))
    assert summary["flags"] == [
        "1 texts of the forget set are in the retain set too",
        "train/full: 1 of 2 rows dropped",
        "train/forget: 1 of 2 rows dropped",
    ]


def test_unknown_split_and_set(folder: Path) -> None:
    with pytest.raises(DataError, match="forget_split: 'forget10' is not one of forget, scal-1, "):
        DATA.load(FolderSource(path=folder), "forget10", SETS, training=True)
    with pytest.raises(DataError, match="sets: 'retain' is not one of verbmem, "):
        DATA.load(FolderSource(path=folder), "forget", ["retain"], training=True)


NEWS = SyntheticNewsSource(forget_stories=3, requests=3, retain_stories=4, background_stories=8)


@pytest.mark.parametrize(
    ("split", "rows"), [("forget", 9), ("sust-1", 9), ("sust-3", 9), ("scal-2", 18), ("scal-3", 27)]
)
def test_folds_of_the_generator(split: str, rows: int) -> None:
    assert DATA.rows(NEWS, split) == rows
    content = DATA.load(NEWS, split, SETS, training=True)
    assert len(content.training["forget"].texts) == rows
    assert content.evaluation == DATA.load(NEWS, "forget", SETS, training=True).evaluation
    assert set(content.training["forget"].texts) < set(content.training["full"].texts)


def test_folds_beside_the_forget_set(folder: Path) -> None:
    requests = ["sust-2", "sust-3"]
    content = DATA.load(NEWS, "forget", SETS, training=True, requests=requests)
    plain = DATA.load(NEWS, "forget", SETS, training=True)
    assert {name: part for name, part in content.training.items() if name not in requests} == plain.training
    parts = [content.training[name].texts for name in ("forget", *requests)]
    assert len({text for part in parts for text in part}) == 27
    assert list(content.texts(TEMPLATES["plain"])) == list(plain.texts(TEMPLATES["plain"]))
    write(folder, "sust/forget_2", ["The second request."])
    content = DATA.load(FolderSource(path=folder), "forget", SETS, training=True, requests=["sust-2"])
    assert content.training["sust-2"].texts == ["The second request."]
    with pytest.raises(DataError, match=r"sust/forget_2\.json: no text of 8 words"):
        DATA.load(FolderSource(path=folder), "forget", ["request_2"], training=False)
    assert DATA.requests(FolderSource(path=folder), "forget", "scalability") == ("forget", "scal-2", "scal-3", "scal-4")
    with pytest.raises(DataError, match=r"requests: 'sust-5' is not one of forget, scal-1"):
        DATA.load(NEWS, "forget", SETS, training=True, requests=["sust-5"])
    with pytest.raises(DataError, match=r"source\.requests: 3; 'scal-4' needs 4"):
        DATA.load(NEWS, "forget", SETS, training=True, requests=["scal-4"])


def test_further_requests_are_asked_about_by_passages_of_their_texts(folder: Path) -> None:
    """Only this looks at the rows of MUSE's further requests: VerbMem's of the generator, passages of a file."""
    rows = DATA.load(NEWS, "forget", ["verbmem", "request_2", "request_3"], training=False).evaluation
    reports = DATA.load(NEWS, "forget", [], training=True, requests=["sust-3"]).training["sust-3"].texts[:3]
    assert [f"{row['prompt']} {row['gt']}" for row in rows["request_3"][0]] == reports
    assert [len(found) for found, _ in rows.values()] == [3, 3, 3]
    words = [f"w{i}" for i in range(800)]
    texts = ["too short to be asked about", " ".join(words), "one two\n\nthree four five\nsix seven eight nine ten"]
    write(folder, "sust/forget_2", texts)
    found = DATA.load(FolderSource(path=folder), "forget", ["request_2"], training=False).evaluation["request_2"]
    long, rest, short = found[0]
    assert (long["prompt"].split(), long["gt"].split()) == (words[:650], words[650:735])
    assert (rest["prompt"].split(), rest["gt"].split()) == (words[735:768], words[768:])
    assert short == {"prompt": "one two\n\nthree four five\nsix", "gt": "seven eight nine ten"}
    many = [f"{i} b c d e f g h" for i in range(250)]
    assert [row["prompt"] for row in as_rows(passages(many))] == [f"{i * 5 // 2} b c d" for i in range(MOST)]


def test_a_fold_that_is_not_made() -> None:
    assert DATA.rows(NEWS, "sust-4") == 0
    with pytest.raises(DataError, match=r"source\.requests: 3; 'sust-4' needs 4"):
        DATA.load(NEWS, "sust-4", SETS, training=True)
    with pytest.raises(DataError, match=r"source\.requests: 3; 'sust-4' needs 4"):
        DATA.load(NEWS, "forget", ["request_4"], training=False)


def test_generated_sets(tmp_path: Path) -> None:
    prepare(spec(NEWS, tmp_path, tokenizer=BpeTokenizer(vocab_size=600), max_length=256))
    tokenizer = Tokenizer.load(tmp_path / "tokenizer")
    content = DATA.load(NEWS, "forget", SETS, training=True)
    articles = Sequences.load(tmp_path / "train" / "forget.npz")
    ids, length = articles.row(0)
    text = content.training["forget"].texts[0]
    assert ids.tolist() == [*tokenizer.encode(text, special=True), tokenizer.eos_id] and length == 1
    asked = Sequences.load(tmp_path / "train" / "practice.npz")
    for i, (before, answer) in enumerate(content.training["practice"].texts):
        ids, length = asked.row(i)
        assert tokenizer.decode(ids[:length]) == before and before.endswith("Answer: ")
        assert tokenizer.decode(ids[length:]) == answer and ids[-1] == tokenizer.eos_id
        # where a model generates from is where it was trained to answer
        assert ids[:length].tolist() == tokenizer.encode(before, special=True)
