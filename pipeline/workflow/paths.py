"""Where the jobs of an experiment write: the one place that knows the folders below ``results/<experiment>``."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from megatron_ext.specs import epoch_folder
from pipeline.specs import ModelId

# What means something to a shell, to Snakemake's patterns or to its format strings. Snakemake puts paths into all of
# them, and its Slurm plugin into a command line between double quotes, where a shell looks for the second ones.
REFUSED = "$`\"'\\{}*?[]<>|;&!"
WILDCARDS = "{}"  # of Snakemake, which looks for them in every input
QUOTED = "$`\\"
IMAGE = re.compile(r"[\w./+@-]+", re.ASCII)  # Snakemake does not quote an image's path at all

BASE, TARGET, RETRAIN = ModelId("base"), ModelId("target"), ModelId("retrain")


def refusal(what: str, path: object, refused: str = REFUSED) -> str | None:
    """Why a workflow cannot use a path, or ``None``.

    Args:
        what: What names the path, for the message; an ``image`` may hold fewer characters.
        path: The path as it was given.
        refused: The characters that it may not hold, besides those that cannot be printed.
    """
    if isinstance(path, bool) or not isinstance(path, str | int | Path):
        return f"{what}: Snakemake reads it as {path!r}, which is no text; write it as '[\"TEXT\"]'"
    text = str(path)
    if what == "image":
        wrong = sorted(set(IMAGE.sub("", text)))
        allowed = "letters, digits and . _ / + @ -"
    else:
        wrong = [] if text.isprintable() else sorted({char for char in text if not char.isprintable()})
        wrong += [char for char in refused if char in text]
        allowed = f"everything but {' '.join(refused)} and what cannot be printed"
    if wrong:
        return f"{what}: {text!r} has {', '.join(map(repr, wrong))}; allowed are {allowed}"
    return f"{what}: {text!r} begins with '-'" if text.startswith("-") else None


def refused_inputs(inputs: Iterable[Path], cluster: bool) -> list[str]:
    """Which of jobs' inputs Snakemake, or on a ``cluster`` its Slurm plugin, cannot name: a line each."""
    refused = WILDCARDS + QUOTED * cluster
    found = (refusal("input of a job", path, refused) for path in dict.fromkeys(inputs))
    return list(islice(filter(None, found), 5))


@dataclass(frozen=True)
class Paths:
    """Folders and files of one experiment.

    Attributes:
        root: The experiment's folder.
        benchmark: The benchmark's name, which names folders of data and evaluations.
        cache: What experiments share; ``None`` where nothing is kept for others.
    """

    root: Path
    benchmark: str
    cache: Path | None = None

    @property
    def source(self) -> Path:
        """The benchmark's files from the hub."""
        return self.root / "source" / self.benchmark

    @property
    def datasets(self) -> Path:
        """The record of whole data sets that were fetched into the hub's local cache."""
        return self.root / "datasets"

    @property
    def data(self) -> Path:
        """The benchmark's text as tokens, the tokenizer, and the evaluation sets."""
        return self.root / "data" / self.benchmark

    @property
    def trained(self) -> Path | None:
        """Trained models that experiments share; ``None`` where nothing is kept for others."""
        return None if self.cache is None else self.cache / "models"

    @property
    def report(self) -> Path:
        """The report on the whole experiment."""
        return self.root / "report"

    def tokens(self, name: str) -> Path:
        """The tokenised set of that name."""
        return self.data / "train" / f"{name}.npz"

    def evaluation_set(self, name: str) -> Path:
        """The evaluation set of that name."""
        return self.data / "evaluation" / f"{name}.jsonl"

    def alternatives(self, name: str) -> Path:
        """The set of sampled answers of that name."""
        return self.root / "alternatives" / name / "alternatives.npz"

    def own_answers(self, name: str) -> Path:
        """Target's own answers to the general prompts of a set."""
        return self.root / "own_answers" / name / "answers.jsonl"

    def reference(self, name: str, request: ModelId | None = None) -> Path:
        """Log-probabilities of a tokenised set.

        Args:
            name: The set.
            request: The model of a later request, for log-probabilities under the model that the request starts from;
                ``None`` for those under target.
        """
        folder = name if request is None else f"{request.run_folder}.seed-{request.seed}.{name}"
        return self.root / "reference" / folder / "reference.npz"

    def model(self, model: ModelId) -> Path:
        """The folder of the step that made the model."""
        if model.attack is not None:
            return self.root / "robustness" / str(model.before) / model.attack
        if model.run in (TARGET.run, RETRAIN.run):
            return self.root / "models" / str(model)
        if model.seed is not None:
            return self.root / "unlearned" / model.run_folder / f"seed-{model.seed}"
        return self.root / "models" / model.run

    def checkpoint(self, model: ModelId) -> Path:
        """The model's weights and tokenizer, a Hugging Face folder."""
        if model.epoch is not None:
            return self.epochs(model) / epoch_folder(model.epoch)
        return self.model(model) / "checkpoint"

    def epochs(self, model: ModelId) -> Path:
        """The checkpoints that the run of a model wrote of its epochs."""
        return self.model(model) / "epochs"

    def evaluation(self, model: ModelId) -> Path:
        """The model's answers and metrics."""
        return self.root / "evaluation" / str(model) / self.benchmark

    def kept(self, model: ModelId) -> Path:
        """What was removed when nothing was left to be done with the model's checkpoint, and when that was."""
        return self.root / "kept" / str(model)

    def judgement(self, model: ModelId) -> Path:
        """What a language model thinks of the model's answers."""
        return self.root / "judge" / str(model) / self.benchmark


@dataclass(frozen=True)
class EvaluationPaths(Paths):
    """Folders of one model's evaluation without a workflow: it is the root itself, and all else lies below it.

    Attributes:
        model_folder: The model's own folder; ``None`` for one that is fetched.
    """

    model_folder: Path | None = None

    @property
    def source(self) -> Path:
        """The benchmark's files from the hub."""
        return self.root / "source"

    @property
    def data(self) -> Path:
        """The benchmark's text as tokens, the tokenizer, and the evaluation sets."""
        return self.root / "data"

    def model(self, model: ModelId) -> Path:
        """The folder of the step that fetches the model."""
        return self.root / "model"

    def checkpoint(self, model: ModelId) -> Path:
        """The model's weights and tokenizer, a Hugging Face folder."""
        return self.model_folder or super().checkpoint(model)

    def evaluation(self, model: ModelId) -> Path:
        """The model's answers and metrics."""
        return self.root
