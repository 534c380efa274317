"""Jobs that sample a model's own answers to general prompts, which stand in for what is to be kept."""

from __future__ import annotations

from collections.abc import Iterator

from pipeline.config.experiment import Config
from pipeline.data.settings import FilesSource
from pipeline.specs import OwnAnswersSpec
from pipeline.workflow.data_sets import own_answers_names
from pipeline.workflow.jobs import Job, job_of
from pipeline.workflow.paths import TARGET, Paths
from pipeline.workflow.training_jobs import runtime


def own_answers_jobs(config: Config, paths: Paths) -> Iterator[Job]:
    """One for each set of the user's that target answers."""
    evaluation, checkpoint = config.experiment.evaluation, paths.checkpoint(TARGET)
    for name in own_answers_names(config):
        assert isinstance(config.source, FilesSource)
        own = config.source.sets[name].own_answers
        assert own is not None
        spec = OwnAnswersSpec(
            checkpoint=checkpoint,
            template=config.template,
            max_length=config.experiment.data.max_length,
            token_budget=evaluation.generation_token_budget or evaluation.token_budget,
            runtime=runtime(config),
            output=paths.own_answers(name).parent,
            **own.model_dump(),
        )
        prompts = () if own.prompts is None else (own.prompts,)
        yield job_of(paths, spec, checkpoint=(checkpoint,), prompts=prompts)
