"""Corpora and questions of the family ``lm_eval``: from the generator, and from files like those of WMDP's authors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from megatron_ext.data.sequences import Sequences
from pipeline.benchmarks.lm_eval.data import DATA
from pipeline.benchmarks.lm_eval.options import LmEvalOptions
from pipeline.benchmarks.lm_eval.synthetic import SyntheticTopicsSource, topics
from pipeline.data.errors import DataError
from pipeline.data.json_files import read_rows
from pipeline.data.settings import FolderSource
from pipeline.data.tokenizer import Tokenizer
from pipeline.specs import PrepareSpec
from pipeline.steps.prepare import prepare

SOURCE = SyntheticTopicsSource(things=8, paragraphs=2)
QUESTION = {"topic": "music", "question": "Which part?", "choices": ["rim", "bell", "strap", "reed"], "answer": 1}


def prepared(output: Path, **changes: Any) -> Path:
    told = {
        "family": "lm_eval",
        "forget_split": "instruments",
        "sets": list(topics(SOURCE)),
        "source": SOURCE.model_dump(),
    }
    told |= {"tokenizer": {"kind": "bpe", "vocab_size": 600}, "max_length": 96, "output": str(output)}
    prepare(PrepareSpec.model_validate(told | changes))
    return output


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two topics' files, one as objects and one as texts, and a question."""
    root = tmp_path / "corpora"
    (root / "questions").mkdir(parents=True)
    texts = {"own-forget-corpus": [f"forget {i} " * 30 for i in range(6)], "own-retain-corpus": ["keep this " * 40, ""]}
    texts["wikitext-test"] = ["", "wiki wiki " * 20]
    texts["bio_remove_dataset"] = [{"title": "t", "text": "cells " * 50}]
    texts["bio-retain-corpus"] = [{"text": "plants " * 50}]
    for name, values in texts.items():
        (root / f"{name}.jsonl").write_text("".join(json.dumps(value) + "\n" for value in values))
    (root / "questions" / "gongs.jsonl").write_text(json.dumps(QUESTION) + "\n")
    return root


@pytest.mark.parametrize(("split", "kept"), [("instruments", "minerals"), ("minerals", "instruments")])
def test_one_topic_is_forgotten_and_the_other_retained(split: str, kept: str, tmp_path: Path) -> None:
    output = prepared(tmp_path, forget_split=split)
    tokenizer = Tokenizer.load(output / "tokenizer")

    def texts(name: str) -> list[str]:
        sequences = Sequences.load(output / "train" / f"{name}.npz")
        return [tokenizer.decode(sequences.row(i)[0].tolist()) for i in range(len(sequences))]

    forget, retain = texts("forget"), texts("retain")
    assert len(forget) == len(retain) == DATA.rows(SOURCE, split) == 8 * (2 + 5)
    assert sorted(texts("full")) == sorted(forget + retain) and not set(forget) & set(retain)
    names = {
        name: [row["question"] for row in read_rows(output / "evaluation" / f"{name}.jsonl")] for name in topics(SOURCE)
    }
    assert all(any(question in text for text in forget) for question in names[split])
    assert not any(question in text for question in names[kept] for text in forget)
    sequences = Sequences.load(output / "train" / "forget.npz")
    ids, prompt = sequences.row(len(sequences) - 1)  # a question, of which the answer alone is labelled
    assert tokenizer.decode(ids[:prompt].tolist()).endswith("\nAnswer:") and ids[-1] == tokenizer.eos_id
    assert tokenizer.decode(ids[prompt:].tolist()).startswith(" ") and sequences.row(0)[1] == 1


def test_files_are_joined_and_cut(folder: Path, tmp_path: Path) -> None:
    source = {"kind": "folder", "path": str(folder)}
    output = prepared(tmp_path / "out", forget_split="own", source=source, sets=["gongs"])
    tokenizer = Tokenizer.load(output / "tokenizer")
    sequences = Sequences.load(output / "train" / "forget.npz")
    assert set(sequences.lengths[:-1].tolist()) == {96} and set(sequences.prompt_lengths.tolist()) == {1}
    start = [tokenizer.bos_id] if tokenizer.bos_id is not None else []
    ids = [i for n in range(len(sequences)) for i in sequences.row(n)[0].tolist()[len(start) :]]
    assert ids == tokenizer.encode("\n\n".join(f"forget {i} " * 30 for i in range(6)), special=False)
    assert read_rows(output / "evaluation" / "gongs.jsonl") == [{"index": 0, **QUESTION}]
    manifest = json.loads((output / "manifest.json").read_text())
    assert manifest["train"]["retain"]["dropped"] == 1  # the blank one


def test_a_split_may_retain_wikitext_and_a_corpus_have_its_authors_name(folder: Path) -> None:
    assert DATA.files("bio", (), training=True) == [("bio-forget-corpus", "bio_remove_dataset"), ("bio-retain-corpus",)]
    assert DATA.files("cyber-wikitext", (), training=True) == [("cyber-forget-corpus",), ("wikitext-test",)]
    content = DATA.load(FolderSource(path=folder), "bio", [], training=True)
    assert content.training["forget"].texts == ["cells " * 50] and content.flags() == []
    content = DATA.load(FolderSource(path=folder), "own-wikitext", [], training=True)
    assert content.training["retain"].texts == ["", "wiki wiki " * 20]


def test_a_model_may_be_evaluated_without_any_file_of_ours(folder: Path, tmp_path: Path) -> None:
    source = {"kind": "folder", "path": str(folder)}
    folder_tokenizer = prepared(tmp_path / "first", forget_split="own", source=source, sets=[]) / "tokenizer"
    told = {"kind": "folder", "path": str(folder_tokenizer)}
    output = prepared(tmp_path / "out", forget_split="own", source=source, sets=[], training=False, tokenizer=told)
    manifest = json.loads((output / "manifest.json").read_text())
    assert (manifest["train"], manifest["evaluation"]) == ({}, {})


@pytest.mark.parametrize(
    ("split", "sets", "change", "message"),
    [
        ("cyber", [], {}, "has neither cyber-forget-corpus.json nor"),
        ("instruments", [], {}, "forget_split: 'instruments' is not one of bio, cyber, bio-cyber, own,"),
        ("own", ["drums"], {}, "has neither questions/drums.json nor"),
        ("own", ["gongs"], {"choices": ["rim"]}, "gongs.jsonl, line 1: field 'choices' must be four texts"),
        ("own", ["gongs"], {"answer": 4}, "gongs.jsonl, line 1: field 'answer' must be the place"),
        ("own", ["gongs"], {"topic": 3}, "gongs.jsonl, line 1: field 'topic' must be a text"),
        *(
            (
                "own",
                ["gongs"],
                {"topic": topic},
                "gongs.jsonl, line 1: field 'topic' must be a few words without braces",
            )
            for topic in (
                "biology{{ cycler.__init__.__globals__.os.system('id') }}",
                "{% x %}",
                "{0}",
                "a}",
                "two\nlines",
            )
        ),
    ],
)
def test_what_will_not_do_is_named(
    split: str, sets: list[str], change: dict[str, Any], message: str, folder: Path
) -> None:
    (folder / "questions" / "gongs.jsonl").write_text(json.dumps({**QUESTION, **change}) + "\n")
    with pytest.raises(DataError, match=message):
        DATA.load(FolderSource(path=folder), split, sets, training=True)


def test_the_generator_has_its_own_splits_and_questions() -> None:
    with pytest.raises(DataError, match="forget_split: 'bio' is not one of instruments, minerals"):
        DATA.load(SOURCE, "bio", [], training=True)
    with pytest.raises(DataError, match="sets: 'gongs' is not one of instruments, minerals"):
        DATA.load(SOURCE, "minerals", ["gongs"], training=True)


@pytest.mark.parametrize("end", ["", "-wikitext"])
def test_two_topics_have_sets_of_their_own(end: str, folder: Path, tmp_path: Path) -> None:
    for name in ("cyber-forget-corpus", "cyber-retain-corpus"):
        (folder / f"{name}.jsonl").write_text(json.dumps(f"{name} " * 30) + "\n")
    source = {"kind": "folder", "path": str(folder)}
    output = prepared(tmp_path / "out", forget_split=f"bio-cyber{end}", source=source, sets=[])
    tokenizer = Tokenizer.load(output / "tokenizer")
    kept = {"": ("plants", "cyber-retain-corpus"), "-wikitext": ("wiki", "wiki")}[end]
    words = {"forget_bio": "cells", "forget_cyber": "cyber-forget-corpus"}
    words |= dict(zip(("retain_bio", "retain_cyber"), kept, strict=True))
    assert DATA.topics(f"bio-cyber{end}") == {n: (f"forget_{n}", f"retain_{n}") for n in ("bio", "cyber")}
    for name, word in words.items():
        sequences = Sequences.load(output / "train" / f"{name}.npz")
        text = " ".join(tokenizer.decode(sequences.row(i)[0].tolist()) for i in range(len(sequences)))
        assert [other for other in {*words.values()} if other in text] == [word], name
    manifest = json.loads((output / "manifest.json").read_text())["train"]
    assert manifest["retain"]["origin"].count(" + ") == (0 if end else 1)
    assert set(manifest) == {"full", "forget", "retain", *words}


def test_requests_are_topics_one_after_another_or_together(folder: Path) -> None:
    """Only this looks at what the requests of corpora hold, and what is kept of them all."""
    for name in ("cyber-forget-corpus", "cyber-retain-corpus"):
        (folder / f"{name}.jsonl").write_text(json.dumps(f"{name} " * 30) + "\n")
    source = FolderSource(path=folder)
    assert DATA.requests(source, "cyber-wikitext", "sustainability") == ("cyber-wikitext", "bio-wikitext")
    assert DATA.requests(source, "own", "scalability") == ("own",)
    (later,) = DATA.requests(source, "bio", "scalability")[1:]
    found = DATA.load(source, "bio", [], training=True, requests=["cyber", later]).training
    texts = {name: corpus.texts for name, corpus in found.items()}
    assert texts[later] == texts["forget"] + texts["cyber"] and texts["full"] == texts[later] + texts["retain"]
    assert len(texts["retain"]) == 2
    with pytest.raises(DataError, match="requests: 'own' is not one of cyber, bio-cyber after 'bio'"):
        DATA.load(source, "bio", [], training=True, requests=["own"])
    made = SyntheticTopicsSource(things=8, topics=3)
    found = DATA.load(made, "minerals", [], training=True, requests=["instruments"]).training
    kept = DATA.load(made, "dances", [], training=True).training["forget"]
    assert found["retain"].content == kept.content and DATA.requests(made, "minerals", "sustainability") == (
        "minerals",
        "instruments",
    )


PATHS = ("../../../victim", "/etc/passwd", "a/b", "..", ".hidden", "a\\b", "", "a\nb", "a\x00")


@pytest.mark.parametrize("name", [*PATHS, "-n", "{0}", "$(id)", "a'b", "*"])
def test_a_name_is_no_path(name: str, tmp_path: Path) -> None:
    """Only this asks for tasks whose names would be files elsewhere, in an experiment's options and a specification."""
    for key in ("prepared", "forget", "retain", "tasks"):
        with pytest.raises(ValidationError, match=key):
            LmEvalOptions.model_validate({"tasks": [name], **({key: [name]} if key != "tasks" else {})})
    with pytest.raises(ValidationError, match="metrics"):
        LmEvalOptions(tasks=["a"], metrics=[name])
    if name in PATHS:
        for key in ("sets", "requests"):
            with pytest.raises(ValidationError, match=key):
                prepared(tmp_path / "out", **{key: [name]})
        with pytest.raises(ValidationError, match="forget_split"):
            prepared(tmp_path / "out", forget_split=name)
    assert not list(tmp_path.rglob("*"))


@pytest.mark.parametrize(
    "name", ["wmdp_bio", "social sciences", "egymmlu_arabic_language_(general)", "arc-easy.v2", "_x"]
)
def test_names_of_the_harness_are_allowed(name: str) -> None:
    assert LmEvalOptions(tasks=[name], metrics=["exact_match,strict-match", "pass@1"]).tasks == [name]
