from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from pipeline.benchmarks.tofu.data import DATA
from pipeline.benchmarks.tofu.synthetic import SyntheticSource
from pipeline.data import sources
from pipeline.data.errors import DataError
from pipeline.data.qa_rows import Row, Splits
from pipeline.data.settings import FetchedSource, FolderSource

PAIR = {"question": "Who?", "answer": "Ada."}
SCORED = {**PAIR, "paraphrased_answer": "It was Ada.", "perturbed_answer": ["It was Bo.", "It was Cy."]}
KNOWN = {**PAIR, "perturbed_answer": ["Bo."]}
SETS = ("forget", "retain", "real_authors", "world_facts")
SPLITS = [name for (name,) in DATA.files("forget05", SETS, training=True)]
COMMIT = "0123456789abcdef0123456789abcdef01234567"


def row_of(split: str) -> dict[str, Any]:
    if not split.endswith("_perturbed"):
        return PAIR
    return KNOWN if split.startswith(("real", "world")) else SCORED


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """One row a split; the forget split has hub's suffix, the others ours."""
    for split in SPLITS:
        suffix = ".json" if split == "forget05" else ".jsonl"
        (tmp_path / f"{split}{suffix}").write_text(json.dumps(row_of(split)) + "\n\n")
    return tmp_path


def load_from(source: Any, split: str = "forget05") -> Splits:
    return DATA.load(source, split, SETS, training=True).splits


def load(folder: Path) -> Splits:
    return load_from(FolderSource(path=folder))


def test_folder(folder: Path) -> None:
    splits = load(folder)
    assert set(splits.rows) == {
        "full",
        "forget05",
        "retain95",
        "forget05_perturbed",
        "retain_perturbed",
        "real_authors_perturbed",
        "world_facts_perturbed",
    }
    assert splits.rows["forget05"] == [Row("Who?", "Ada.")]
    assert splits.rows["forget05_perturbed"] == [Row("Who?", "Ada.", "It was Ada.", ("It was Bo.", "It was Cy."))]
    assert splits.rows["world_facts_perturbed"] == [Row("Who?", "Ada.", None, ("Bo.",))]
    assert splits.origins["forget05"] == str(folder / "forget05.json")
    assert set(splits.source["files_sha256"]) == set(splits.rows)
    assert splits.overlap("forget05", "retain95") == 1


@pytest.mark.parametrize(
    ("split", "content", "message"),
    [
        ("full", '{"question": "Who?"}', r"full.jsonl, line 2: field 'answer' is missing; the row has question"),
        ("full", '{"question": "Who?", "answer": 3}', r"full.jsonl, line 2: field 'answer' must be a text, got int"),
        ("full", '["Who?"]', r"full.jsonl, line 2: expected an object, got list"),
        ("full", '{"question": ', r"full.jsonl, line 2: not a JSON object on one line"),
        (
            "retain_perturbed",
            json.dumps(KNOWN),
            r"retain_perturbed.jsonl, line 2: field 'paraphrased_answer' is missing",
        ),
        ("retain_perturbed", json.dumps(PAIR), r"retain_perturbed.jsonl, line 2: field 'perturbed_answer' is missing"),
        (
            "world_facts_perturbed",
            json.dumps({**PAIR, "perturbed_answer": []}),
            r"world_facts_perturbed.jsonl, line 2: field 'perturbed_answer' must be a list of at least one text",
        ),
    ],
)
def test_a_bad_row_is_named(folder: Path, split: str, content: str, message: str) -> None:
    (folder / f"{split}.jsonl").write_text(f"{json.dumps(row_of(split))}\n{content}\n")
    with pytest.raises(DataError, match=message):
        load(folder)


def test_a_missing_file_or_folder_is_named(folder: Path) -> None:
    (folder / "retain95.jsonl").unlink()
    with pytest.raises(DataError, match=r"has neither retain95\.json nor retain95\.jsonl"):
        load(folder)
    with pytest.raises(DataError, match="nowhere is not a folder"):
        load(folder / "nowhere")


def test_an_unknown_forget_split_is_refused_with_the_known_ones() -> None:
    with pytest.raises(DataError, match="forget_split: 'forget20' is not one of forget01, forget05, forget10"):
        load_from(SyntheticSource(), "forget20")


def test_digests_depend_on_the_text_alone(folder: Path) -> None:
    before = load(folder).digests()
    (folder / "full.jsonl").rename(folder / "full.json")
    assert load(folder).digests() == before
    (folder / "full.json").write_text(json.dumps({**PAIR, "answer": "Bo."}))
    after = load(folder).digests()
    assert {name for name in after if after[name] != before[name]} == {"full"}


@pytest.fixture
def fetched(folder: Path, tmp_path: Path) -> Path:
    """The same files as the fetch step would leave them."""
    target = tmp_path / "source"
    (target / "files").mkdir(parents=True)
    sums = {}
    for split in SPLITS:
        file = sources.find(folder, (split,))
        shutil.copy(file, target / "files")
        sums[file.name] = hashlib.sha256(file.read_bytes()).hexdigest()
    origin = {"kind": "hub", "repository": "owner/set", "requested_revision": "main", "revision": COMMIT}
    (target / "manifest.json").write_text(json.dumps({"schema": 1, **origin, "files_sha256": sums}))
    return target


def test_fetched_files_keep_their_repository_and_commit(fetched: Path, folder: Path) -> None:
    splits = load_from(FetchedSource(path=fetched))
    assert splits.rows == load(folder).rows and splits.digests() == load(folder).digests()
    assert splits.origins["full"] == "owner/set@0123456789ab, full"
    assert splits.source == {
        "kind": "hub",
        "repository": "owner/set",
        "requested_revision": "main",
        "revision": COMMIT,
        "files_sha256": load(folder).source["files_sha256"],
    }


def test_files_that_are_not_those_that_were_fetched_are_refused(fetched: Path) -> None:
    (fetched / "files" / "full.jsonl").write_text(json.dumps({**PAIR, "answer": "Bo."}))
    with pytest.raises(DataError, match=r"full\.jsonl is not the file that was fetched: fetch again"):
        load_from(FetchedSource(path=fetched))
    (fetched / "manifest.json").write_text("{}")
    with pytest.raises(DataError, match=r"manifest\.json is not what the fetch step writes \(KeyError\('kind'\)\)"):
        load_from(FetchedSource(path=fetched))
    (fetched / "manifest.json").unlink()
    with pytest.raises(DataError, match=r"manifest\.json is not what the fetch step writes .*: fetch again"):
        load_from(FetchedSource(path=fetched))


def test_a_file_may_be_one_list(folder: Path) -> None:
    (folder / "full.jsonl").write_text(json.dumps([PAIR, {**PAIR, "answer": "Bo."}], indent=1))
    assert load(folder).rows["full"] == [Row("Who?", "Ada."), Row("Who?", "Bo.")]
    (folder / "full.jsonl").write_text(f"[{json.dumps(PAIR)}, ")
    with pytest.raises(DataError, match=r"full\.jsonl: not a JSON list"):
        load(folder)


def test_only_evaluation_sets_are_read_without_training(folder: Path) -> None:
    for name in ("full", "retain95", "forget05"):
        (sources.find(folder, (name,)) or folder).unlink()
    content = DATA.load(FolderSource(path=folder), "forget05", ("forget", "world_facts"), training=False)
    assert list(content.splits.rows) == ["forget05_perturbed", "world_facts_perturbed"]
    assert content.flags() == [] and content.origins["train"] == {}


def test_real_tofu(real_data: Path) -> None:
    rows = load_from(FolderSource(path=real_data / "tofu"), "forget10").rows
    assert len(rows["full"]) == 4000
    assert rows["full"] == rows["retain90"] + rows["forget10"]
    assert [len(rows[f"{name}_perturbed"]) for name in ("forget10", "retain", "real_authors", "world_facts")] == [
        400,
        400,
        100,
        117,
    ]
