"""What the files of ``workflow_configs`` may say: experiments, methods, models and benchmarks, one by one.

What they must be together is checked in ``pipeline.config.checks``.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, field_validator, model_validator

from megatron_ext.config import (
    Batching,
    GlobalBatch,
    Layout,
    Optimisation,
    Quantisation,
    RuntimeSettings,
    Scheme,
    Shares,
    TrainableLayers,
    Training,
)
from megatron_ext.losses import AnyLoss
from megatron_ext.schema import Line, Strict
from megatron_ext.specs import SampledAnswers, Unlearning
from megatron_ext.updates import AnyRule
from pipeline.benchmarks import AnySource, families
from pipeline.config.located_yaml import hint
from pipeline.config.model_schema import Checkpoint, GivenModel, Model, Name, kind
from pipeline.data.settings import BadRows, FilesSource, RequestOrder
from pipeline.judging.settings import JudgeSettings
from pipeline.tracking.settings import TrackingSettings


class Batches(GlobalBatch, Optimisation):
    micro_batch: int | None = Field(
        None, ge=1, description="default: all of a data-parallel rank's share of the global batch"
    )

    micro_batch_tokens: int | None = Field(None, ge=1, description="bounds a micro-batch too; default: no bound")

    def batching(self, layout: Layout) -> Batching:
        """With what each rank of ``layout`` takes at a time."""
        micro = self.micro_batch or max(1, self.global_batch // layout.data)
        return Batching(global_batch=self.global_batch, micro_batch=micro, micro_batch_tokens=self.micro_batch_tokens)


class ModelTraining(Batches, Shares, Training):
    """How the base, target or retrain model is trained: shares of tokenised sets, and a number of optimizer steps."""

    threads: int | None = Field(None, ge=1, description="CPU threads of each rank; default: the experiment's")


class MethodTraining(Batches, Unlearning):
    """How a method takes its steps."""


PreferredAnswers = Annotated[
    Annotated[Literal["idk"], Tag("plain")] | Annotated[SampledAnswers, Tag("mapping")], Discriminator(kind)
]


class Method(Strict):
    """A method file, into which the experiment's ``unlearning`` and the method's own ``overrides`` are merged.

    ``preferred_answers``: other answers to the forget set's prompts, for losses that need them: the tokenised set of
    refusals, or how the target samples them.
    """

    name: Name
    title: Line
    source: Line
    forget: AnyLoss
    retain: AnyLoss | None = None
    rule: AnyRule
    trainable_layers: TrainableLayers | None = None
    preferred_answers: PreferredAnswers | None = None
    training: MethodTraining


class MethodUse(Strict):
    method: str
    variant: Name | None = None
    overrides: dict[str, Any] = {}


class PublishedTable(Strict):
    """Numbers of one source: run -> metric -> value.

    A run is ``target``, ``retrain``, a method's name, or that with a variant's after a hyphen: ``simnpo-blur`` is for
    the variant ``blur`` of the method ``simnpo``. ``model`` is a model file's name.
    """

    source: Line
    model: str
    split: str
    values: dict[str, dict[str, float]]


class Benchmark(Strict):
    name: Name
    title: Line
    family: str
    options: dict[str, Any] = Field({}, description="the family's settings")
    source: AnySource
    splits: dict[str, int] = Field({}, description="forget split -> its rows; a source of files says its splits itself")
    published: list[PublishedTable] = []

    @property
    def forget_splits(self) -> list[str]:
        """The names of the forget splits."""
        return list(self.source.splits if isinstance(self.source, FilesSource) else self.splits)

    @model_validator(mode="after")
    def _stated_once(self) -> Benchmark:
        if isinstance(self.source, FilesSource) and self.splits:
            raise ValueError("splits: the source's own 'splits' say them, and their rows are counted")
        if not self.forget_splits:
            raise ValueError("splits: is missing or empty; at least one forget split with its rows is needed")
        return self

    @field_validator("family")
    @classmethod
    def _known(cls, name: str) -> str:
        if name not in families():
            raise ValueError(f"unknown family {name!r}{hint(name, list(families()))}")
        return name


class TrainingPlan(Strict):
    """What is trained here; a model that is left out is a published checkpoint of the model file."""

    base: ModelTraining | None = None
    target: ModelTraining | None = None
    retrain: ModelTraining | None = None

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


def _kind(value: Any) -> str:
    return "mapping" if isinstance(value, dict | Strict) else "plain"


class AutoLayout(Strict):
    """The first layout of ``auto`` GPUs, of those with the fewest stages and then tensor-parallel ranks, at which every
    step fits."""

    auto: int = Field(ge=1, description="GPUs")
    memory_gib: float = Field(80, gt=0, description="of each")
    node: int = Field(8, ge=1, description="GPUs of a node, which tensor-parallel ranks do not leave")


def _layout_kind(value: Any) -> str:
    auto = isinstance(value, AutoLayout) or (isinstance(value, dict) and "auto" in value)
    return "automatic" if auto else _kind(value)


class Relearn(Batches, Training):
    """Fine-tuning on a share of the forget set's rows, which the seed draws, for a number of optimizer steps."""

    variant: Name | None = None
    share: float = Field(gt=0, le=1)

    @property
    def id(self) -> str:
        return f"relearn-{self.variant}" if self.variant else "relearn"


class Quantise(Quantisation):
    variant: Name | None = None

    @property
    def id(self) -> str:
        return f"{self.scheme}-{self.variant}" if self.variant else self.scheme


class Robustness(Strict):
    """What is done to every evaluated model, each attack by itself, before it is evaluated once more."""

    relearn: (
        Annotated[Annotated[list[Relearn], Tag("plain")] | Annotated[Relearn, Tag("mapping")], Discriminator(_kind)]
        | None
    ) = None
    quantise: list[
        Annotated[Annotated[Scheme, Tag("plain")] | Annotated[Quantise, Tag("mapping")], Discriminator(_kind)]
    ] = []

    @property
    def relearned(self) -> list[Relearn]:
        return [self.relearn] if isinstance(self.relearn, Relearn) else self.relearn or []

    @property
    def quantised(self) -> list[Quantise]:
        return [entry if isinstance(entry, Quantise) else Quantise(scheme=entry) for entry in self.quantise]

    @model_validator(mode="after")
    def _different(self) -> Robustness:
        for key, found in (("relearn", self.relearned), ("quantise", self.quantised)):
            names = [attack.id for attack in found]
            twice = [name for name in names if names.count(name) > 1]
            if twice:
                raise ValueError(f"{key}: {twice[0]!r} is there twice; give one of them another 'variant'")
        return self


class UnlearningRequests(Strict):
    """Several requests to forget, for every method and seed; the first is the experiment's own split.

    ``sustainability``: each is forgotten by the model that has forgotten those before it. ``scalability``: each holds
    the one before it, and is forgotten by the target.
    """

    order: RequestOrder
    count: int = Field(4, ge=2)


class ReportSettings(Strict):
    """What the report holds of the data's own texts."""

    examples: int = Field(200, ge=0, description="most rows of each evaluated set that are shown in words; 0: none")
    evidence_texts: bool = Field(
        False, description="put what was to be forgotten, in words, into evidence and model cards"
    )


class Experiment(Strict):
    name: Name
    title: Line
    benchmark: Annotated[Annotated[str, Tag("plain")] | Annotated[Benchmark, Tag("mapping")], Discriminator(_kind)]
    split: str
    model: Annotated[Annotated[str, Tag("plain")] | Annotated[GivenModel, Tag("mapping")], Discriminator(_kind)]
    seeds: list[Annotated[int, Field(ge=0)]] = Field([0], min_length=1)
    methods: list[
        Annotated[Annotated[str, Tag("plain")] | Annotated[MethodUse, Tag("mapping")], Discriminator(_kind)]
    ] = Field(min_length=1)
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
