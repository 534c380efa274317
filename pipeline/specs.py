"""What each program of this package is told; the model-parallel programs' specifications are in megatron_ext.specs.

Imports neither torch nor megatron: plans are made and checked without them.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import Field, field_validator, model_validator

from megatron_ext.schema import Strict
from megatron_ext.specs import QuantiseSpec, ReferenceSpec, Runtime, TrainSpec, UnlearnSpec
from pipeline.benchmarks import AnyOptions
from pipeline.data.base import FoldKind


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

    ``folds``: requests to forget, of ``forget_stories`` each; the first is what the evaluation asks about.
    """

    kind: Literal["synthetic_news"] = "synthetic_news"
    forget_stories: int = Field(20, ge=3)
    folds: int = Field(1, ge=1)
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


class PrepareSpec(Strict):
    """Benchmark text to tokenised splits."""

    step: Literal["prepare"] = "prepare"
    family: str
    source: LocalSource
    forget_split: str
    sets: list[str] = Field(description="evaluation sets that are written")
    training: bool = Field(True, description="whether training sets are written too")
    folds: list[str] = Field([], description="other forget splits, whose forget sets are training sets by their names")
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
    files: list[list[str]] = Field(
        min_length=1, description="of each file the names that it may have, without .json or .jsonl"
    )
    output: Path = Field(strict=False)


class FetchDatasetsSpec(Strict):
    """Whole data sets of the hub, into its local cache, where an evaluation reads them."""

    step: Literal["fetch_datasets"] = "fetch_datasets"
    datasets: dict[str, str] = Field(min_length=1, description="repository -> revision")
    output: Path = Field(strict=False)


RETRAIN = "retrain"  # the id of the model that never saw the forget set, with which the others are compared


class EvaluateSpec(Strict):
    """One model on one benchmark: raw scores of every example, and the metrics made from them."""

    step: Literal["evaluate"] = "evaluate"
    options: AnyOptions = Field(description="the benchmark family and its settings")
    benchmark: str
    split: str
    model_id: str
    seed: int | None = None
    checkpoint: Path = Field(strict=False)
    data: Path = Field(strict=False, description="folder that the prepare step wrote")
    retain_evaluation: Path | None = Field(
        None, strict=False, description="folder of retrain's evaluation; what compares with it needs it"
    )
    token_budget: int = Field(16384, ge=1, description="tokens, padding included, of one forward pass")
    runtime: Runtime = Runtime()
    output: Path = Field(strict=False)


class JudgeSettings(Strict):
    """A language model behind an OpenAI-compatible endpoint that judges answers, and how it is asked.

    A setting of the request that is null is not sent. The key itself is never here: its variable is named.
    """

    base_url: str = Field(description="what /chat/completions is added to, such as https://host/v1")
    model: str = Field(min_length=1)
    api_key_env: str | None = Field(None, description="NAME of the environment variable with the key; null: no key")
    max_examples: int | None = Field(100, ge=1, description="examples of a set at most; null: all")
    concurrency: int = Field(4, ge=1, le=256, description="requests at a time")
    timeout_seconds: float = Field(60.0, gt=0, description="of a request, all of it")
    retries: int = Field(3, ge=0, description="further tries of a request that failed")
    backoff_seconds: float = Field(1.0, ge=0, description="before the first of them; doubles, to a minute at most")
    give_up_after: int = Field(20, ge=1, description="requests that fail in a row; nothing is asked after them")
    min_answered: float = Field(0.9, gt=0, le=1, description="share of judgements without which a metric is null")
    temperature: float | None = Field(0.0, ge=0)
    seed: int | None = 0
    max_tokens: int | None = Field(300, ge=1)

    @field_validator("base_url")
    @classmethod
    def _address(cls, url: str) -> str:
        # No message repeats what was given: it may be a secret in the wrong place.
        try:
            parts = urlsplit(url)
            good = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        except ValueError:
            good = False
        if not good or any(char.isspace() or not char.isprintable() for char in url):
            raise ValueError("must be an address such as https://host/v1")
        if parts.username is not None or parts.password is not None or parts.query or parts.fragment:
            raise ValueError("must hold neither user, password, query nor fragment; a key goes through 'api_key_env'")
        return url

    @field_validator("api_key_env")
    @classmethod
    def _variable(cls, name: str | None) -> str | None:
        if name is not None and not re.fullmatch(r"[A-Z][A-Z0-9_]{0,63}", name):
            raise ValueError("must be the NAME of an environment variable, in capitals, such as OPENAI_API_KEY")
        return name


class JudgeSpec(Strict):
    """A language model's judgement of one model's answers.

    ``sets``: which set's answers should have been forgotten and which kept. ``cache``: folder of answers by content.
    """

    step: Literal["judge"] = "judge"
    benchmark: str
    split: str
    model_id: str
    seed: int | None = None
    evaluation: Path = Field(strict=False, description="folder with evaluation.json and examples.jsonl")
    sets: dict[Literal["forget", "retain"], str]
    settings: JudgeSettings
    cache: Path = Field(strict=False)
    output: Path = Field(strict=False)

    @field_validator("sets")
    @classmethod
    def _both(cls, sets: dict[str, str]) -> dict[str, str]:
        if len(sets) != 2:
            raise ValueError(f"must name the sets 'forget' and 'retain', names {', '.join(sets) or 'none'}")
        return sets


class ReportEntry(Strict):
    """One row of the report: a model, where its evaluation is, and, where it was unlearned, its step log."""

    model_id: str
    kind: Literal["target", "retrain", "unlearned"]
    method: str | None = None
    title: str
    variant: str | None = None
    seed: int | None = None
    attack: str | None = Field(
        None, description="what was done to the model, one of the report's attacks; null: nothing"
    )
    fold: int | None = Field(None, ge=2, description="which request to forget it was asked last; null: the first")
    evaluation: Path = Field(strict=False, description="folder with evaluation.json and examples.jsonl")
    run: Path | None = Field(None, strict=False, description="folder with summary.json, provenance.json and logs")
    judgement: Path | None = Field(None, strict=False, description="folder with judgement.json, where there is one")


class Attack(Strict):
    """What is done to every model to see whether what it forgot comes back; ``about`` says it in a line."""

    name: str
    kind: Literal["relearn", "quantise"]
    about: str


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
    options: AnyOptions = Field(description="the benchmark family and its settings")
    experiment: str
    benchmark: str
    split: str
    model: str
    entries: list[ReportEntry] = Field(min_length=1)
    attacks: list[Attack] = []
    attacked: list[ReportEntry] = Field([], description="the entries' models, each after one of the attacks")
    folds: FoldKind | None = None
    folded: list[ReportEntry] = Field([], description="the entries' methods after each further request to forget")
    steps: dict[str, Annotated[Path, Field(strict=False)]] = Field(
        default_factory=dict, description="name -> folder of other steps whose times are listed: data, base, reference"
    )
    published: list[Published] = []
    config: dict[str, Any] = Field(default_factory=dict, description="the resolved experiment, for provenance")
    output: Path = Field(strict=False)

    @model_validator(mode="after")
    def _known(self) -> ReportSpec:
        whole = {entry.model_id for entry in self.entries}
        names = [attack.name for attack in self.attacks]
        for entry in self.attacked:
            if entry.attack not in names:
                raise ValueError(f"attacked: {entry.model_id!r}: no attack {entry.attack!r}; there are: {names}")
            if entry.model_id.removesuffix(f".{entry.attack}") not in whole:
                raise ValueError(f"attacked: {entry.model_id!r} is no entry's model_id with '.{entry.attack}' added")
        return self


StepSpec = Annotated[
    PrepareSpec
    | FetchSpec
    | FetchDataSpec
    | FetchDatasetsSpec
    | TrainSpec
    | QuantiseSpec
    | ReferenceSpec
    | UnlearnSpec
    | EvaluateSpec
    | JudgeSpec
    | ReportSpec,
    Field(discriminator="step"),
]
