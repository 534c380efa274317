"""What each program of this package is told; the model-parallel programs' specifications are in megatron_ext.specs.

Imports neither torch nor megatron: plans are made and checked without them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from megatron_ext.config.selection import BEST_WITHIN_BUDGET
from megatron_ext.schema import Strict
from megatron_ext.specs import (
    AlternativesSpec,
    ModelStepSpec,
    QuantiseSpec,
    ReferenceSpec,
    StepSpec,
    TrainSpec,
    UnlearnSpec,
)
from pipeline.benchmarks import AnyLocalSource, AnyOptions
from pipeline.benchmarks.evaluated_model import ModelId
from pipeline.data.settings import BadRows, OwnAnswers, PromptTemplate, RequestOrder, Tokenizer
from pipeline.judging.settings import JudgeSettings

# A name that becomes a file's: of the folder that it is put into, and never hidden.
FileName = Annotated[str, Field(pattern=r"^[^./\\\x00-\x1f][^/\\\x00-\x1f]*$", max_length=200)]


class PrepareSpec(StepSpec):
    """Benchmark text to tokenised splits."""

    program: Literal["prepare"] = "prepare"
    family: str
    source: AnyLocalSource
    forget_split: FileName
    sets: list[FileName] = Field(description="evaluation sets that are written")
    training: bool = Field(True, description="whether training sets are written too")
    requests: list[FileName] = Field([], description="other forget splits: their forget sets are training sets too")
    tokenizer: Tokenizer
    template: PromptTemplate = "plain"
    max_length: int = Field(ge=8, description="tokens of a sequence, prompt and end token included")
    bad_rows: BadRows = Field("error", description="what becomes of rows that are too long or have no answer token")
    cache: Path | None = Field(None, strict=False, description="folder of tokenised splits keyed by content")


class OwnAnswersSpec(ModelStepSpec, OwnAnswers):
    """A model's own answers to general prompts, as rows that data preparation reads."""

    program: Literal["own_answers"] = "own_answers"
    checkpoint: Path = Field(strict=False)
    template: PromptTemplate
    max_length: int = Field(ge=8, description="tokens of a sequence, prompt and end token included")
    token_budget: int = Field(16384, ge=1, description="positions of the key-value cache of answers computed at once")


class FetchSpec(StepSpec):
    """A published checkpoint, from the hub or a local folder, with ``adapter`` merged into it, to a folder of this
    experiment. ``expected``: entries that its ``config.json`` must have, because the plan was checked against them."""

    program: Literal["fetch"] = "fetch"
    hub: str | None = None
    revision: str | None = None
    folder: Path | None = Field(None, strict=False)
    adapter: Path | None = Field(None, strict=False)
    expected: dict[str, Any] = {}


class FetchDataSpec(StepSpec):
    """A data set's files, from the hub to a folder of this experiment, which the prepare step reads."""

    program: Literal["fetch_data"] = "fetch_data"
    repository: str
    revision: str
    files: list[list[str]] = Field(
        min_length=1, description="of each file the names that it may have, without .json or .jsonl"
    )


class FetchDatasetsSpec(StepSpec):
    """Whole data sets of the hub, into its local cache, where an evaluation reads them."""

    program: Literal["fetch_datasets"] = "fetch_datasets"
    datasets: dict[str, str] = Field(min_length=1, description="repository -> revision")


RETRAIN = "retrain"  # the id of the model that never saw the forget set, with which the others are compared


class EvaluateSpec(ModelStepSpec):
    """One model on one benchmark: raw scores of every example, and the metrics made from them."""

    program: Literal["evaluate"] = "evaluate"
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
    token_budget: int = Field(16384, ge=1, description="tokens of one forward pass")
    generation_token_budget: int | None = Field(
        None, ge=1, description="positions of the key-value cache of answers computed at once; default: token_budget"
    )

    @property
    def answers_budget(self) -> int:
        """``generation_token_budget`` with its default filled in."""
        return self.generation_token_budget or self.token_budget


class JudgeSpec(StepSpec):
    """A language model's judgement of one model's answers.

    ``sets``: which set's answers should have been forgotten and which kept. ``cache``: folder of answers by content.
    """

    program: Literal["judge"] = "judge"
    benchmark: str
    split: str
    model_id: str
    seed: int | None = None
    evaluation: Path = Field(strict=False, description="folder with evaluation.json and examples.jsonl")
    sets: dict[Literal["forget", "retain"], str]
    settings: JudgeSettings
    cache: Path = Field(strict=False)

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
    swept: str | None = Field(None, description="of a sweep, the method with its variant that was swept")
    point: dict[str, bool | int | float | str | None] = Field(
        {}, description="of a sweep, this model's values, by key of the method's file"
    )
    seed: int | None = None
    attack: str | None = Field(
        None, description="what was done to the model, one of the report's attacks; null: nothing"
    )
    request: int | None = Field(None, ge=2, description="which request to forget it was asked last; null: the first")
    epoch: int | None = Field(None, ge=1, description="after which epoch of its run the model was saved; null: its end")
    evaluation: Path = Field(strict=False, description="folder with evaluation.json and examples.jsonl")
    run: Path | None = Field(None, strict=False, description="folder with summary.json, provenance.json and logs")
    judgement: Path | None = Field(None, strict=False, description="folder with judgement.json, where there is one")
    utility: dict[str, Annotated[Path, Field(strict=False)]] = Field(
        {}, description="by further benchmark, the folder of its evaluation"
    )


class FailedRow(Strict):
    """A model that the report has nothing of, and why: the lines that the failed job was reported with."""

    model_id: str
    title: str
    lines: list[str] = Field(min_length=1)


class Attack(Strict):
    """What is done to every model to see whether what it forgot comes back; ``about`` says it in a line."""

    name: str
    kind: Literal["relearn", "quantise"]
    about: str


class Published(Strict):
    """A published number to stand beside ours."""

    method: str = Field(description="a method, with its variant after a hyphen where it has one; or target, retrain")
    metric: str
    value: float
    source: str
    model: str | None = None
    split: str | None = None


class UtilityBenchmark(Strict):
    """A further benchmark that the report's models were asked, which nothing was trained on."""

    options: AnyOptions
    split: str


class ReportSpec(StepSpec):
    program: Literal["report"] = "report"
    options: AnyOptions = Field(description="the benchmark family and its settings")
    experiment: str
    benchmark: str
    split: str
    model: str
    entries: list[ReportEntry] = Field(min_length=1)
    attacks: list[Attack] = []
    attacked: list[ReportEntry] = Field([], description="the entries' models, each after one of the attacks")
    requests: RequestOrder | None = None
    later_requests: list[ReportEntry] = Field(
        [], description="the entries' methods after each further request to forget"
    )
    repeats: list[ReportEntry] = Field(
        [], description="target and retrain of further seeds, as they are and after each attack"
    )
    by_epoch: list[ReportEntry] = Field(
        [], description="the entries' runs after each evaluated epoch, the one that they end in among them"
    )
    steps: dict[str, Annotated[Path, Field(strict=False)]] = Field(
        default_factory=dict, description="name -> folder of other steps whose times are listed: data, base, reference"
    )
    published: list[Published] = []
    published_of: str | None = Field(None, description="the model that the published numbers are of, if another")
    utility: dict[str, UtilityBenchmark] = Field({}, description="further benchmarks, by name")
    chosen_by: Literal["best-on-validation", "best-within-budget", "test_metric"] | None = Field(
        None, description="what the marked point of each sweep is chosen by"
    )
    test_metric: str | None = Field(None, description="the metric, where it is chosen by one that it is judged by")
    budget_metric: Literal["retain_probability", "retain_greedy_match"] | None = Field(
        None, description="what the budget is of, where it is chosen within one"
    )
    failed: list[FailedRow] = Field([], description="models that there is nothing of; the report is a partial one then")
    examples: int = Field(0, ge=0, description="most rows of each evaluated set that are shown in words; 0: none")
    evidence_texts: bool = Field(False, description="whether what was to be forgotten is in the evidence in words")
    config: dict[str, Any] = Field(default_factory=dict, description="the resolved experiment, for provenance")

    @model_validator(mode="before")
    @classmethod
    def _as_written_before(cls, data: Any) -> Any:
        """Specifications of reports that were written before the budget's metric was named in them."""
        if isinstance(data, dict) and data.get("chosen_by") == BEST_WITHIN_BUDGET and "budget_metric" not in data:
            return {**data, "budget_metric": "retain_probability"}
        return data

    @model_validator(mode="after")
    def _known(self) -> ReportSpec:
        models = {entry.model_id for entry in (*self.entries, *self.later_requests)}
        names = [attack.name for attack in self.attacks]
        if (self.budget_metric is None) != (self.chosen_by != BEST_WITHIN_BUDGET):
            raise ValueError(f"budget_metric: needed with chosen_by: {BEST_WITHIN_BUDGET!r}, and with nothing else")
        for entry in self.attacked:
            if entry.attack not in names:
                raise ValueError(f"attacked: {entry.model_id!r}: no attack {entry.attack!r}; there are: {names}")
            model = ModelId.parse(entry.model_id, names)
            if model.attack != entry.attack or str(model.before) not in models:
                raise ValueError(f"attacked: {entry.model_id!r} is no entry's model_id with '.{entry.attack}' added")
        return self


class ReleaseSpec(StepSpec):
    """Remove the checkpoints that are not kept, of this model and of those that may be chosen in its place.

    A model's may be removed when all that reads them is done, and its own release has begun.
    """

    program: Literal["release"] = "release"
    model_id: str
    checkpoints: dict[str, list[Annotated[Path, Field(strict=False)]]] = Field(description="by model, its folders")
    readers: dict[str, list[Annotated[Path, Field(strict=False)]]] = Field(
        description="by model, the summaries of the steps that read its folders"
    )
    choice: ReportSpec | None = Field(None, description="among which models one is chosen, and by what; null: none is")


AnyStepSpec = Annotated[
    PrepareSpec
    | FetchSpec
    | FetchDataSpec
    | FetchDatasetsSpec
    | TrainSpec
    | QuantiseSpec
    | AlternativesSpec
    | OwnAnswersSpec
    | ReferenceSpec
    | UnlearnSpec
    | EvaluateSpec
    | JudgeSpec
    | ReportSpec
    | ReleaseSpec,
    Field(discriminator="program"),
]
