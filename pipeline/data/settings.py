"""Settings of data preparation: where data come from, which tokenizer and which template."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from megatron_ext.schema import Seed, Strict
from megatron_ext.specs import SampledAnswers

SetName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$", description="goes into file names")]
TABLES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet")
TEXTS = (".txt", ".md")
RESERVED = ("full", "forget", "retain", "holdout", "reworded", "cloze", "idk")  # what sets of a split are called
# What models are asked of the texts among them.
ASKED_TEXTS = ("forget_texts", "retain_texts", "holdout_texts", "reworded_texts")


class HubSource(Strict):
    """Data files of a Hugging Face dataset repository."""

    kind: Literal["hub"] = "hub"
    repository: str
    revision: str = Field(description="commit of the repository; a branch name is resolved and recorded")


class FetchedSource(Strict):
    """Data files of a hub repository as the fetch step left them, in ``path/files`` beside ``path/manifest.json``."""

    kind: Literal["fetched"] = "fetched"
    path: Path = Field(strict=False)


class FolderSource(Strict):
    """A local folder that holds the hub repository's files under the same names (``<split>.json`` or ``.jsonl``)."""

    kind: Literal["folder"] = "folder"
    path: Path = Field(strict=False)


class OwnAnswers(SampledAnswers):
    """How target answers general prompts, where there is nothing else that is to be kept.

    It is then trained to go on saying what it said. ``prompts``: a text of one prompt a line, or rows of questions.
    """

    per_row: int = Field(1, ge=1, description="answers to each prompt")
    max_new_tokens: int = Field(64, ge=1, description="of an answer, at most")
    prompts: Path | None = Field(None, strict=False, description="a file; default: the project's own prompts")
    seed: Seed = Field(0, description="of the draws")


class UserSet(Strict):
    """A file or folder of a user's: questions with answers, chats, or plain text; or what target itself answers.

    A file is a table of rows (JSON Lines, JSON, CSV or Parquet) or one text (``.txt``, ``.md``); a folder holds texts,
    of which every one below it is read.
    """

    path: Path | None = Field(None, strict=False)
    own_answers: OwnAnswers | None = Field(None, description="in place of a path: target's answers to general prompts")
    question_key: str = Field("question", description="of a row: the question")
    answer_key: str = Field("answer", description="of a row: its answer")
    messages_key: str | None = Field(None, description="of a row: a chat, in place of a question and its answer")
    text_key: str | None = Field(None, description="of a row: a text, in place of a question and its answer")
    paraphrased_key: str | None = Field(None, description="of a row: the answer in other words")
    perturbed_key: str | None = Field(None, description="of a row: wrong answers, a list or one text")
    delimiter: Literal[",", ";", "\t", "|"] | None = Field(None, description="of a CSV file; default: found")

    @property
    def form(self) -> Literal["questions", "messages", "texts"]:
        """What the rows are."""
        if self.text_key is not None or (self.path is not None and self.path.suffix.lower() not in TABLES):
            return "texts"
        return "questions" if self.messages_key is None else "messages"

    @model_validator(mode="after")
    def _one_form(self) -> Self:
        if self.path is None and self.own_answers is None:
            raise ValueError("path: is missing")
        others = [(key, one.default) for key, one in type(self).model_fields.items() if key != "own_answers"]
        changed = next((key for key, default in others if getattr(self, key) != default), None)
        if self.own_answers is not None and changed is not None:
            raise ValueError(f"{changed}: does not go with 'own_answers'")
        if self.text_key is not None and self.messages_key is not None:
            raise ValueError("text_key: does not go with 'messages_key'")
        suffix = "" if self.path is None else self.path.suffix.lower()
        unread = {
            "question_key": self.form != "questions" and f"{self.form} have none",
            "answer_key": self.form != "questions" and f"{self.form} have none",
            "messages_key": suffix not in TABLES and "a text has no rows",
            "text_key": suffix not in TABLES and "a text has no rows",
            "paraphrased_key": self.form == "texts" and "texts have no answers",
            "perturbed_key": self.form == "texts" and "texts have no answers",
            "delimiter": suffix not in (".csv", ".tsv") and "only a CSV file has one",
        }
        for key, default in others:
            if getattr(self, key) != default and unread.get(key):
                raise ValueError(f"{key}: {unread[key]}")
        return self


class UserSplit(Strict):
    """Which sets are forgotten, kept, and asked about.

    ``holdout``: like the forget set, but never seen by any model. ``reworded``: questions about what is forgotten in
    other words. ``cloze``: sentences about it with a blank, and what fills it. ``others``: what else is asked about and
    should stay. No model is trained on these four.
    """

    forget: list[SetName] = Field(min_length=1)
    retain: list[SetName] = Field(min_length=1)
    holdout: list[SetName] = []
    reworded: list[SetName] = []
    cloze: list[SetName] = []
    others: list[SetName] = []

    @field_validator("*", mode="before")
    @classmethod
    def _list(cls, given: Any) -> Any:
        return [given] if isinstance(given, str) else given

    @field_validator("*")
    @classmethod
    def _once(cls, names: list[str]) -> list[str]:
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise ValueError(f"names {twice!r} twice")
        return names

    @property
    def named(self) -> dict[str, list[str]]:
        """The sets by what they are for."""
        return {name: getattr(self, name) for name in type(self).model_fields}


class FilesSource(Strict):
    """A user's own files: sets by free names, and forget splits that say what each set is for.

    A relative path starts at the folder of the YAML file that names it.
    """

    kind: Literal["files"] = "files"
    sets: dict[SetName, UserSet] = Field(min_length=1)
    splits: dict[SetName, UserSplit] = Field(min_length=1)

    @field_validator("sets", mode="before")
    @classmethod
    def _paths(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        return {name: {"path": value} if isinstance(value, str) else value for name, value in given.items()}

    @model_validator(mode="after")
    def _known(self) -> Self:
        for name in ASKED_TEXTS:
            if name in self.sets:
                raise ValueError(f"sets: {name}: a set cannot be called so; another name is needed")
        for split, parts in self.splits.items():
            both = [name for name in parts.forget if name in parts.retain]
            if both:
                raise ValueError(f"splits: {split}.retain: {both[0]!r} is to be forgotten; allowed: other sets")
            if split in (*RESERVED, *ASKED_TEXTS) or (split in self.sets and parts.forget != [split]):
                raise ValueError(f"splits: {split}: a split cannot be called so; another name is needed")
            for use, names in parts.named.items():
                for name in names:
                    if name not in self.sets:
                        raise ValueError(
                            f"splits: {split}.{use}: unknown set {name!r}; allowed: {', '.join(self.sets)}"
                        )
                    if self.sets[name].own_answers is not None and use != "retain":
                        raise ValueError(
                            f"splits: {split}.{use}: {name!r} is what target itself answers: it can be kept only"
                        )
                    if name in RESERVED and name != use:
                        raise ValueError(f"splits: {split}.{use}: a set called {name!r} can be used as that only")
        return self

    def located(self, folder: Callable[[str], Path]) -> Self:
        """The same with absolute paths; ``folder`` says of a set's name where its relative path starts."""

        def placed(name: str, path: Path) -> Path:
            return Path(os.path.abspath(folder(name) / path.expanduser()))

        sets = {}
        for name, one in self.sets.items():
            own = one.own_answers
            if one.path is not None:
                one = one.model_copy(update={"path": placed(name, one.path)})
            elif own is not None and own.prompts is not None:
                own = own.model_copy(update={"prompts": placed(name, own.prompts)})
                one = one.model_copy(update={"own_answers": own})
            sets[name] = one
        return self.model_copy(update={"sets": sets})

    def answered(self, file: Callable[[str], Path]) -> Self:
        """The same where ``file`` says in which file target's answers of a set are."""
        sets = {name: one if one.own_answers is None else UserSet(path=file(name)) for name, one in self.sets.items()}
        return self.model_copy(update={"sets": sets})


class GeneratedSource(Strict):
    """A benchmark's own seeded generator: the base of the settings that lie in the benchmarks' folders."""

    kind: str


# For annotations. Where YAML is read, ``pipeline.benchmarks`` has the same with every benchmark's own generators.
DataSource = HubSource | FolderSource | FilesSource | GeneratedSource
LocalSource = FetchedSource | FolderSource | FilesSource | GeneratedSource


class FolderTokenizer(Strict):
    """The tokenizer of a Hugging Face folder."""

    kind: Literal["folder"] = "folder"
    path: Path = Field(strict=False)


class BpeTokenizer(Strict):
    """A byte-level BPE tokenizer trained on the benchmark's own training text, for models made from scratch."""

    kind: Literal["bpe"] = "bpe"
    vocab_size: int = Field(ge=260)


Tokenizer = Annotated[FolderTokenizer | BpeTokenizer, Field(discriminator="kind")]


TemplateName = Literal[
    "plain", "plain-open-unlearning", "llama-2", "llama-3", "zephyr", "chatml", "gemma", "phi-3", "mistral-instruct"
]


# Of which texts white space around them is removed: of both, of neither, or of one.
Trims = bool | Literal["question", "answer"]


class TemplateParts(Strict):
    """What stands before, between and after a question and its answer."""

    before_question: str
    after_question: str
    before_answer: str = Field("", description="labelled with the answer, as is what follows it")
    after_answer: str = Field("", description="the token that closes an answer, where there is one")
    adds_bos: bool = Field(True, description="whether the tokenizer's own start token goes first")
    special_tokens: list[str] = Field([], description="texts that must be one token each")
    trims: Trims = Field(False, description="whether white space around question and answer, or one, is removed")
    labels_by_length: bool = Field(
        False, description="whether labels begin after as many tokens of the whole text as the prompt has by itself"
    )


# As a step is told it; in a model file there are further ways to say it.
PromptTemplate = TemplateName | TemplateParts


BadRows = Literal["error", "drop"]


RequestOrder = Literal["sustainability", "scalability"]
