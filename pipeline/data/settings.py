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


class SyntheticSource(Strict):
    """Our own seeded generator of fictitious authors."""

    kind: Literal["synthetic"] = "synthetic"
    authors: int = Field(40, ge=2)
    questions_per_author: int = Field(20, ge=2, le=20)
    background_authors: int = Field(40, ge=0)
    seed: int = Field(0, ge=0)


class SyntheticNewsSource(Strict):
    """Our own seeded generator of invented news; every story is three articles.

    ``requests``: requests to forget, of ``forget_stories`` each; the first is what the evaluation asks about.
    """

    kind: Literal["synthetic_news"] = "synthetic_news"
    forget_stories: int = Field(20, ge=3)
    requests: int = Field(1, ge=1)
    retain_stories: int = Field(40, ge=3)
    background_stories: int = Field(80, ge=8)
    seed: int = Field(0, ge=0)


class SyntheticTopicsSource(Strict):
    """Our own seeded generator of two invented topics; ``things``: of each topic, with ``paragraphs`` texts each."""

    kind: Literal["synthetic_topics"] = "synthetic_topics"
    things: int = Field(24, ge=8, le=128)
    paragraphs: int = Field(2, ge=1)
    seed: int = Field(0, ge=0)


Synthetic = SyntheticSource | SyntheticNewsSource | SyntheticTopicsSource


DataSource = Annotated[HubSource | FolderSource | Synthetic, Field(discriminator="kind")]


LocalSource = Annotated[FetchedSource | FolderSource | Synthetic, Field(discriminator="kind")]


class FolderTokenizer(Strict):
    """The tokenizer of a Hugging Face folder."""

    kind: Literal["folder"] = "folder"
    path: Path = Field(strict=False)


class BpeTokenizer(Strict):
    """A byte-level BPE tokenizer trained on the benchmark's own training text, for models made from scratch."""

    kind: Literal["bpe"] = "bpe"
    vocab_size: int = Field(ge=260)


Tokenizer = Annotated[FolderTokenizer | BpeTokenizer, Field(discriminator="kind")]


TemplateName = Literal["plain", "llama-2", "llama-3", "zephyr"]


BadRows = Literal["error", "drop"]


RequestOrder = Literal["sustainability", "scalability"]
