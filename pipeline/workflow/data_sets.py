"""Which sets and files of a benchmark an experiment uses."""

from __future__ import annotations

from pipeline.benchmarks.refusals import ALTERNATIVES
from pipeline.benchmarks.request_sets import alternatives_set
from pipeline.config import experiment
from pipeline.config.experiment import Config
from pipeline.data.prepared import Names
from pipeline.data.settings import FilesSource


def topics(config: Config) -> dict[str, tuple[str, str]]:
    """By topic that is unlearned, its forget and its retain set."""
    return config.data.topics(config.experiment.split)


def trains(config: Config) -> bool:
    """Whether anything is trained or unlearned, so that training sets are needed."""
    return bool(config.runs or config.experiment.training.used)


def tokenised_sets(config: Config) -> list[str]:
    """The tokenised sets that preparing writes: the benchmark's, those of topics, and those of later requests."""
    named = config.data.tokenised_sets(config.source)
    of_topics = (name for pair in topics(config).values() for name in pair)
    later = config.requests[1:]
    refused = [alternatives_set(ALTERNATIVES, name) for name in later] if ALTERNATIVES in named else []
    return list(dict.fromkeys([*named, *of_topics, *later, *refused]))


def evaluation_sets(config: Config) -> list[str]:
    """The sets that every model is evaluated on."""
    return list(config.family.sets(config.options))


def data_files(config: Config) -> list[Names]:
    """The files of a hub repository or a folder that preparing the benchmark reads, each with its possible names."""
    return experiment.data_files(config.experiment, config.benchmark, evaluation_sets(config), trains(config))


def own_answers_names(config: Config) -> list[str]:
    """The user's sets that target answers."""
    sets = config.source.sets if isinstance(config.source, FilesSource) else {}
    return [name for name, one in sets.items() if one.own_answers is not None]
