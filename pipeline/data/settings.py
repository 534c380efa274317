"""Settings of data preparation: where data come from, which tokenizer and which template."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from megatron_ext.schema import Strict


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


class GeneratedSource(Strict):
    """A benchmark's own seeded generator: the base of the settings that lie in the benchmarks' folders."""

    kind: str


# For annotations. Where YAML is read, ``pipeline.benchmarks`` has the same with every benchmark's own generators.
DataSource = HubSource | FolderSource | GeneratedSource
LocalSource = FetchedSource | FolderSource | GeneratedSource


class FolderTokenizer(Strict):
    """The tokenizer of a Hugging Face folder."""

    kind: Literal["folder"] = "folder"
    path: Path = Field(strict=False)


class BpeTokenizer(Strict):
    """A byte-level BPE tokenizer trained on the benchmark's own training text, for models made from scratch."""

    kind: Literal["bpe"] = "bpe"
    vocab_size: int = Field(ge=260)


Tokenizer = Annotated[FolderTokenizer | BpeTokenizer, Field(discriminator="kind")]


TemplateName = Literal["plain", "llama-2", "llama-3", "zephyr", "chatml", "gemma", "phi-3", "mistral-instruct"]


class TemplateParts(Strict):
    """What stands before, between and after a question and its answer."""

    before_question: str
    after_question: str
    before_answer: str = Field("", description="labelled with the answer, as is what follows it")
    after_answer: str = Field("", description="the token that closes an answer, where there is one")
    adds_bos: bool = Field(True, description="whether the tokenizer's own start token goes first")
    special_tokens: list[str] = Field([], description="texts that must be one token each")
    trims: bool = Field(False, description="whether white space around question and answer is removed")


# As a step is told it; in a model file there are further ways to say it.
PromptTemplate = TemplateName | TemplateParts


BadRows = Literal["error", "drop"]


RequestOrder = Literal["sustainability", "scalability"]
