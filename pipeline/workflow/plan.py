"""All jobs of an experiment: one fully resolved specification each, and the files that it reads.

Pure Python and quick: Snakemake asks it for every rule's input and specification, ``validate`` prints it. What a job
is told is said in the module of its kind, such as ``unlearning_jobs``.
"""

from __future__ import annotations

from functools import cached_property
from pathlib import Path

from megatron_ext.specs import ReferenceSpec
from pipeline.config.experiment import Config
from pipeline.config.schema import CACHE
from pipeline.data.prepared import Names
from pipeline.specs import ModelId, ReleaseSpec
from pipeline.workflow import data_sets
from pipeline.workflow.data_jobs import fetch_jobs, fetches_data, prepare_job, published
from pipeline.workflow.evaluation_jobs import (
    compared_models,
    evaluation_jobs,
    first_models,
    judged_models,
    judgement_jobs,
)
from pipeline.workflow.jobs import Job
from pipeline.workflow.own_answers_jobs import own_answers_jobs
from pipeline.workflow.paths import Paths
from pipeline.workflow.release_jobs import release_jobs
from pipeline.workflow.report_job import report_job
from pipeline.workflow.request_jobs import later_models, request_jobs
from pipeline.workflow.robustness_jobs import attacked_models, robustness_jobs
from pipeline.workflow.training_jobs import has_base, repeated_models, training_jobs
from pipeline.workflow.unlearning_jobs import (
    alternatives_jobs,
    models_by_epoch,
    reference_jobs,
    sampled_sets,
    unlearning_jobs,
)
from pipeline.workflow.utility_jobs import asked_models, described_utility, utility_jobs


class Plan:
    """All jobs of a checked experiment, in an order in which they could run.

    Args:
        config: The experiment.
        results: The folder of results, in which the experiment has one by its name; or all its folders.
    """

    def __init__(self, config: Config, results: Path | Paths):
        self.config = config
        if isinstance(results, Paths):
            self.paths = results
        else:
            root = Path(results) / config.experiment.name
            self.paths = Paths(root, config.benchmark.name, Path(results) / CACHE)

    @cached_property
    def jobs(self) -> dict[str, Job]:
        """Every job by its name; those that a job reads files of come before it."""
        config, paths = self.config, self.paths
        made = [
            *fetch_jobs(config, paths),
            *own_answers_jobs(config, paths),
            prepare_job(config, paths),
            *training_jobs(config, paths),
            *alternatives_jobs(config, paths),
            *reference_jobs(config, paths),
            *unlearning_jobs(config, paths),
            *evaluation_jobs(config, paths),
            *robustness_jobs(config, paths),
            *request_jobs(config, paths),
            *utility_jobs(config, paths),
            *judgement_jobs(config, paths),
        ]
        made += release_jobs(config, paths, made)
        if config.runs:  # a report is about unlearned models
            made.append(report_job(config, paths, made))
        return {job.name: job for job in made}

    @property
    def trained(self) -> list[str]:
        """Models that are trained here; a training that nothing uses is not among them."""
        return [*self.config.experiment.training.used, *map(str, repeated_models(self.config))]

    @property
    def has_base(self) -> bool:
        """Whether there is a base model, which target and retrain start from."""
        return has_base(self.config)

    @property
    def fetched(self) -> list[str]:
        """Models that are published checkpoints."""
        return list(published(self.config))

    @property
    def fetches_data(self) -> bool:
        """Whether the benchmark's files come from the hub."""
        return fetches_data(self.config)

    @property
    def fetches_datasets(self) -> bool:
        """Whether whole data sets are fetched into the hub's local cache."""
        return bool(self.config.hub_datasets)

    @property
    def compared(self) -> list[ModelId]:
        """The models that unlearned ones are compared with."""
        return compared_models(self.config)

    @property
    def attacked(self) -> list[ModelId]:
        """What becomes of every evaluated model by every attack."""
        return attacked_models(self.config)

    @property
    def evaluated(self) -> list[ModelId]:
        """Every model that is evaluated."""
        return [*first_models(self.config), *models_by_epoch(self.config), *self.attacked, *later_models(self.config)]

    @property
    def utility(self) -> list[str]:
        """The further benchmarks that models are asked."""
        return list(described_utility(self.config))

    @property
    def asked(self) -> list[ModelId]:
        """Every model that is asked them."""
        return asked_models(self.config)

    @property
    def judged(self) -> list[ModelId]:
        """Every model whose answers a language model judges."""
        return judged_models(self.config)

    @property
    def run_folders(self) -> list[str]:
        """The folders of unlearned models, each with a folder for every seed."""
        runs = [ModelId(run.id) for run in self.config.runs]
        later = [ModelId(run.run, request=request) for run in runs for request in self.config.requests[1:]]
        return [model.run_folder for model in (*runs, *later)]

    @property
    def released(self) -> list[str]:
        """The unlearned models whose checkpoints may be removed."""
        return [job.spec.output.name for job in self.jobs.values() if isinstance(job.spec, ReleaseSpec)]

    @property
    def tokenised_sets(self) -> list[str]:
        """The tokenised sets that preparing writes."""
        return data_sets.tokenised_sets(self.config)

    @property
    def evaluation_sets(self) -> list[str]:
        """The sets that every model is evaluated on."""
        return data_sets.evaluation_sets(self.config)

    @property
    def data_files(self) -> list[Names]:
        """The files that preparing the benchmark reads, each with its possible names."""
        return data_sets.data_files(self.config)

    @property
    def alternatives_names(self) -> list[str]:
        """The folders of sampled answers."""
        return list(sampled_sets(self.config))

    @property
    def own_answers_names(self) -> list[str]:
        """The user's sets that target answers."""
        return data_sets.own_answers_names(self.config)

    @property
    def reference_names(self) -> list[str]:
        """The folders of log-probabilities: of sets under target, and of sets under models of earlier requests."""
        return [job.spec.output.name for job in self.jobs.values() if isinstance(job.spec, ReferenceSpec)]
