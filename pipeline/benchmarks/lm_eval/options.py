"""Settings of an evaluation by tasks of lm-evaluation-harness."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from megatron_ext.schema import Seed
from pipeline.benchmarks.base import Options

CHOICE = {"acc": "", "acc_norm": "characters", "acc_bytes": "bytes"}  # metric -> lengths that it divides by

# Names become parts of paths and of metrics' keys. These forms hold every name of the harness; none has a folder in it.
Task = Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_ .()-]*$", max_length=150)]
MetricName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_ .,@:+()-]*$", max_length=150)]


class LmEvalOptions(Options):
    """Which tasks are asked, how, and what they say.

    Attributes:
        tasks: names of tasks, or of groups of tasks
        prepared: those of which the prepare step writes the questions
        prompt_format: of prepared tasks: ``letters`` is WMDP's prompt, which lists the choices and is answered by a
            letter; ``texts`` is a bare question, as ARC has it, that a choice's own text answers
        metrics: the harness's names, ``acc`` for example, or ``exact_match,strict-match`` with a filter; each task must
            have at least one
        forget: tasks whose score is to fall
        retain: tasks whose score is to stay
        choices: of a question of the tasks in ``forget``: a model that knows nothing is right in one of so many
        include_path: folder of more task files; paths of data files in them start at the task's file
        datasets: data sets of the hub, with revisions, which the fetch step brings
        num_fewshot: number of answered questions before each, where a task does not insist on none
        limit: number of documents of each task, the first ones
        seed: draws the few shots of tasks that draw them
    """

    family: Literal["lm_eval"] = "lm_eval"
    tasks: list[Task] = Field(min_length=1)
    prepared: list[Task] = Field([], description="tasks of which the prepare step writes the questions")
    prompt_format: Literal["letters", "texts"] = Field(
        "letters", description="what is scored of a prepared task's choices"
    )
    metrics: list[MetricName] = Field(["acc"], min_length=1)
    forget: list[Task] = Field([], description="tasks whose score is to fall")
    retain: list[Task] = Field([], description="tasks whose score is to stay")
    choices: int = Field(4, ge=2, description="of a question of the tasks in 'forget': guessing gives one in so many")
    include_path: Path | None = Field(None, strict=False)
    datasets: dict[str, str] = Field({}, description="hub data set -> revision")
    num_fewshot: int | None = Field(None, ge=0, description="where a task does not insist on none; default: the task's")
    limit: int | None = Field(None, ge=1, description="documents of each task: the first ones")
    seed: Seed = Field(1234, description="draws the few shots of tasks that draw them")

    @model_validator(mode="after")
    def _names(self) -> LmEvalOptions:
        for key in ("tasks", "metrics"):
            names = getattr(self, key)
            if len(set(names)) < len(names):
                raise ValueError(f"{key}: {names} names one twice")
        for key in ("prepared", "forget", "retain"):
            unknown = [name for name in getattr(self, key) if name not in self.tasks]
            if unknown:
                raise ValueError(f"{key}: {unknown[0]!r} is not in 'tasks': {', '.join(self.tasks)}")
        both = sorted({*self.forget} & {*self.retain})
        if both:
            raise ValueError(f"forget: {both[0]!r} is in 'retain' too")
        return self

    @property
    def hub_datasets(self) -> dict[str, str]:
        return self.datasets
