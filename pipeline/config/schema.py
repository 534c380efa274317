"""What an experiment may say; methods, models, benchmarks and attacks have files of their own beside this one.

What they must be together is checked in ``pipeline.config.checks``.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, field_validator

from megatron_ext.config import Layout, RuntimeSettings
from megatron_ext.config.selection import WithinBudget
from megatron_ext.schema import Line, Seed, Strict
from pipeline.config.attack_schema import Robustness
from pipeline.config.benchmark_schema import Benchmark
from pipeline.config.method_schema import MethodUse, ModelTraining
from pipeline.config.model_schema import Checkpoint, GivenModel, Model, Name, kind
from pipeline.config.sweeps import Sweep
from pipeline.data.settings import BadRows, RequestOrder
from pipeline.judging.settings import JudgeSettings
from pipeline.tracking.settings import TrackingSettings

CACHE = "cache"  # the folder of results that experiments share, beside those of their names


class TrainingPlan(Strict):
    """What is trained here; a model that is left out is a published checkpoint of the model file."""

    base: ModelTraining | None = None
    target: ModelTraining | None = None
    retrain: ModelTraining | None = None
    shared: bool = Field(
        False, description="keep trained models in the results' cache, where experiments with equal settings find them"
    )

    repeats: int = Field(
        1,
        ge=1,
        le=1000,
        description="models of target and of retrain, with seeds of their own, that metrics are to tell apart",
    )

    @property
    def sections(self) -> dict[str, ModelTraining]:
        """What is given, by model."""
        given = {"base": self.base, "target": self.target, "retrain": self.retrain}
        return {which: section for which, section in given.items() if section is not None}

    @property
    def used(self) -> list[str]:
        """The models that are trained; a base that neither of the others starts from is not among them."""
        others = [which for which in self.sections if which != "base"]
        return (["base"] if self.base and others else []) + others


class DataSettings(Strict):
    max_length: int = Field(512, ge=8)
    bad_rows: BadRows = "error"


class Evaluation(Strict):
    """``token_budget`` bounds the tokens of one forward pass, here and in the reference step, and
    ``generation_token_budget`` those whose keys and values a batch of answers keeps; ``options`` are merged into those
    of the benchmark."""

    options: dict[str, Any] = {}
    token_budget: int = Field(16384, ge=1)
    generation_token_budget: int | None = Field(None, ge=1, description="default: token_budget")


class AutoLayout(Strict):
    """The first layout of ``auto`` GPUs, of those with the fewest stages and then tensor-parallel ranks, at which every
    step fits."""

    auto: int = Field(ge=1, description="GPUs")
    memory_gib: float = Field(80, gt=0, description="of each")
    node: int = Field(8, ge=1, description="GPUs of a node, which tensor-parallel ranks do not leave")


def _layout_kind(value: Any) -> str:
    auto = isinstance(value, AutoLayout) or (isinstance(value, dict) and "auto" in value)
    return "automatic" if auto else kind(value)


class UnlearningRequests(Strict):
    """Several requests to forget, for every method and seed; the first is the experiment's own split.

    ``sustainability``: each is forgotten by the model that has forgotten those before it. ``scalability``: each holds
    the one before it, and is forgotten by the target.
    """

    order: RequestOrder
    count: int = Field(4, ge=2)


class ReportSettings(Strict):
    """What the report holds of the data's own texts, and of others' numbers."""

    examples: int = Field(200, ge=0, description="most rows of each evaluated set that are shown in words; 0: none")
    evidence_texts: bool = Field(
        False, description="put what was to be forgotten, in words, into evidence and model cards"
    )
    published_of: Name | None = Field(
        None, description="another model, whose published numbers on this split stand beside ours"
    )


class OnTestMetric(Strict):
    """Points of a sweep are chosen by what they are then judged by, which every table says of them."""

    test_metric: str


def _selection_kind(value: Any) -> str:
    test = isinstance(value, OnTestMetric) or (isinstance(value, dict) and "test_metric" in value)
    return "test" if test else kind(value)


Selection = Annotated[
    Annotated[Literal["last", "best-on-validation"], Tag("plain")]
    | Annotated[WithinBudget, Tag("mapping")]
    | Annotated[OnTestMetric, Tag("test")],
    Discriminator(_selection_kind),
]


class EvaluateEvery(Strict):
    """After how many epochs of unlearning each method's model is evaluated too; a run ends in none of these for it."""

    epochs: int = Field(ge=1)


class Experiment(Strict):
    name: Name
    title: Line
    benchmark: Annotated[Annotated[str, Tag("plain")] | Annotated[Benchmark, Tag("mapping")], Discriminator(kind)]
    split: str
    utility: list[
        Annotated[Annotated[str, Tag("plain")] | Annotated[Benchmark, Tag("mapping")], Discriminator(kind)]
    ] = Field([], description="further benchmarks, of the family lm_eval: what else each model still can")
    model: Annotated[Annotated[str, Tag("plain")] | Annotated[GivenModel, Tag("mapping")], Discriminator(kind)]
    seeds: list[Seed] = Field([0], min_length=1)
    methods: list[
        Annotated[Annotated[str, Tag("plain")] | Annotated[MethodUse, Tag("mapping")], Discriminator(kind)]
    ] = Field(min_length=1)
    sweep: dict[str, Sweep] = Field(
        {},
        description="by method, with its variant: keys of its file and their values, of which every combination is a "
        "run in place of the method's own; or a list of points",
    )
    select: Selection | None = Field(
        None,
        description="the step that every run ends in, and the point of each sweep that is marked; default: as each "
        "run's validation says, and none",
    )
    evaluate_every: EvaluateEvery | None = Field(
        None, description="has the benchmark's metrics of every method's epochs; default: of what its run ends in alone"
    )
    keep: Literal["all", "selected", "none"] = Field(
        "all", description="which unlearned models' checkpoints stay when nothing is left to be done with them"
    )
    layout: Annotated[
        Annotated[int, Tag("plain")] | Annotated[Layout, Tag("mapping")] | Annotated[AutoLayout, Tag("automatic")],
        Discriminator(_layout_kind),
    ] = 1
    training: TrainingPlan = TrainingPlan()
    unlearning: dict[str, Any] = Field({}, description="merged into every method's 'training'")
    data: DataSettings = DataSettings()
    evaluation: Evaluation = Evaluation()
    judge: JudgeSettings | None = None
    robustness: Robustness = Robustness()
    report: ReportSettings = ReportSettings()
    tracking: TrackingSettings | None = None
    requests: UnlearningRequests | None = None
    runtime: RuntimeSettings = RuntimeSettings()

    @field_validator("name")
    @classmethod
    def _own_folder(cls, name: str) -> str:
        if name == CACHE:
            raise ValueError(f"{name!r} is not allowed: the folder of results that all experiments share is called so")
        return name

    @field_validator("seeds")
    @classmethod
    def _different(cls, seeds: list[int]) -> list[int]:
        if len(set(seeds)) < len(seeds):
            raise ValueError(f"{seeds} names a seed twice")
        return seeds


def checkpoints(model: Model, training: TrainingPlan, split: str) -> dict[str, Checkpoint]:
    """The published checkpoints that an experiment uses: those of models that it does not train."""
    found = {}
    for which in ("base", "target", "retrain"):
        checkpoint = model.published(which, split)
        needed = which != "base" or training.used
        if checkpoint is not None and needed and getattr(training, which) is None:
            found[which] = checkpoint
    return found


def tokenizer_source(training: TrainingPlan, published: dict[str, Checkpoint]) -> str | None:
    """Which of the ``published`` checkpoints gives the tokenizer; ``None`` where it is trained on the data."""
    return None if "base" in training.used else next((w for w in ("base", "target") if w in published), None)
