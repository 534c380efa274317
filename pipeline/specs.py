"""What each program of this package is told; the model-parallel programs' specifications are in megatron_ext.specs.

Imports neither torch nor megatron: plans are made and checked without them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from megatron_ext.schema import Strict
from megatron_ext.specs import ReferenceSpec, Runtime, TrainSpec, UnlearnSpec


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


DataSource = Annotated[HubSource | FolderSource | SyntheticSource, Field(discriminator="kind")]
LocalSource = Annotated[FetchedSource | FolderSource | SyntheticSource, Field(discriminator="kind")]


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


class PrepareSpec(Strict):
    """Benchmark text to tokenised splits."""

    step: Literal["prepare"] = "prepare"
    family: Literal["tofu"] = "tofu"
    source: LocalSource
    forget_split: str = "forget10"
    tokenizer: Tokenizer
    template: TemplateName = "plain"
    max_length: int = Field(ge=8, description="tokens of a sequence, prompt and end token included")
    bad_rows: BadRows = Field("error", description="what becomes of rows that are too long or have no answer token")
    cache: Path | None = Field(None, strict=False, description="folder of tokenised splits keyed by content")
    output: Path = Field(strict=False)


class FetchSpec(Strict):
    """A published checkpoint, from the hub or a local folder, to a Hugging Face folder of this experiment.

    ``expected``: entries that its ``config.json`` must have, because the plan was checked against them.
    """

    step: Literal["fetch"] = "fetch"
    hub: str | None = None
    revision: str | None = None
    folder: Path | None = Field(None, strict=False)
    expected: dict[str, Any] = {}
    output: Path = Field(strict=False)


class FetchDataSpec(Strict):
    """A data set's files, from the hub to a folder of this experiment, which the prepare step reads."""

    step: Literal["fetch_data"] = "fetch_data"
    repository: str
    revision: str
    splits: list[str] = Field(min_length=1, description="names of the files, without .json or .jsonl")
    output: Path = Field(strict=False)


class EvaluateSpec(Strict):
    """One model on one benchmark: raw scores of every example, and the metrics made from them."""

    step: Literal["evaluate"] = "evaluate"
    family: Literal["tofu"] = "tofu"
    benchmark: str
    split: str
    model_id: str
    seed: int | None = None
    checkpoint: Path = Field(strict=False)
    data: Path = Field(strict=False, description="folder that the prepare step wrote")
    retain_evaluation: Path | None = Field(
        None, strict=False, description="folder of retrain's evaluation; forget quality is computed only with it"
    )
    max_new_tokens: int = Field(200, ge=1)
    token_budget: int = Field(16384, ge=1, description="tokens, padding included, of one forward pass")
    runtime: Runtime = Runtime()
    output: Path = Field(strict=False)


class ReportEntry(Strict):
    """One row of the report: a model, where its evaluation is, and, where it was unlearned, its step log."""

    model_id: str
    kind: Literal["target", "retrain", "unlearned"]
    method: str | None = None
    title: str
    variant: str | None = None
    seed: int | None = None
    evaluation: Path = Field(strict=False, description="folder with evaluation.json and examples.jsonl")
    run: Path | None = Field(None, strict=False, description="folder with steps.jsonl, summary.json, provenance.json")


class Published(Strict):
    """A published number to stand beside ours."""

    method: str
    metric: str
    value: float
    source: str
    model: str | None = None
    split: str | None = None


class ReportSpec(Strict):
    step: Literal["report"] = "report"
    family: Literal["tofu"] = "tofu"
    experiment: str
    benchmark: str
    split: str
    model: str
    entries: list[ReportEntry] = Field(min_length=1)
    steps: dict[str, Annotated[Path, Field(strict=False)]] = Field(
        default_factory=dict, description="name -> folder of other steps whose times are listed: data, base, reference"
    )
    published: list[Published] = []
    config: dict[str, Any] = Field(default_factory=dict, description="the resolved experiment, for provenance")
    output: Path = Field(strict=False)


StepSpec = Annotated[
    PrepareSpec | FetchSpec | FetchDataSpec | TrainSpec | ReferenceSpec | UnlearnSpec | EvaluateSpec | ReportSpec,
    Field(discriminator="step"),
]
