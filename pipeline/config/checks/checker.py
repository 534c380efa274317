"""What the checks share: the files that an experiment names, the parts found in them, and the problems."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar

from megatron_ext.config import Layout
from pipeline.benchmarks import Options
from pipeline.config.benchmark_schema import Benchmark
from pipeline.config.experiment import Config, Run, Utility, retrain_split
from pipeline.config.located_yaml import ConfigError, Document, Key, check, current, hint, read
from pipeline.config.model_schema import Model
from pipeline.config.named_files import beside, is_path, placed
from pipeline.config.schema import Experiment
from pipeline.config.site import Site
from pipeline.config.sizing import Shape
from pipeline.data.settings import DataSource, PromptTemplate

N = TypeVar("N", Benchmark, Model)


class Files:
    """An experiment's document, and the files of benchmarks, models and methods that it names."""

    def __init__(self, document: Document, folders: list[Path], problems: list[str]):
        """Look for files in ``folders``, and collect what is wrong.

        Args:
            document: The experiment's file.
            folders: Where files are looked for by their names, the first folder first.
            problems: The list that every problem is added to.
        """
        self.document, self.folders, self.problems = document, folders, problems

    def problem(self, key: Key, message: str) -> None:
        """Report what is wrong at ``key`` of the experiment's file."""
        self.problems.append(self.document.problem(key, message))

    def find(self, kind: str, name: str, key: Key) -> Document | None:
        """The file of that kind and name or path, which the experiment's ``key`` asks for; ``None`` after a problem."""
        if is_path(name):
            path = beside(self.document.mark(key).file, name)
            if not path.is_file():
                self.problem(key, f"{name!r}: there is no file {str(path)!r}")
                return None
            return self._read(kind, path)
        for folder in self.folders:
            path = folder / f"{kind}s" / f"{name}.yaml"
            if path.is_file():
                return self._read(kind, path)
        known = sorted({file.stem for folder in self.folders for file in (folder / f"{kind}s").glob("*.yaml")})
        self.problem(
            key, f"unknown {kind} {name!r}{hint(name, known)}; a file elsewhere is named by its path, with .yaml"
        )
        return None

    def _read(self, kind: str, path: Path) -> Document | None:
        try:
            return placed(kind, current(kind, read(path), self.problems))
        except ConfigError as error:
            self.problems += error.problems
            return None

    def named(self, model: type[N], name: str, key: Key | None = None) -> tuple[N | None, Document | None]:
        """The benchmark or model of that name, checked by itself, and its file; ``key`` asks for it where the
        experiment's key is not the kind's own."""
        kind = model.__name__.lower()
        document = self.find(kind, name, key or (kind,))
        if document is None:
            return None, None
        parsed = check(model, document, self.problems)
        if parsed and parsed.name != name and not is_path(name):
            self.problems.append(document.problem(("name",), f"{parsed.name!r} must be the file's own name, {name!r}"))
        return parsed, document


@dataclass
class Parts:
    """What was found of an experiment so far; ``None``: nothing, and a problem says why.

    ``described``: what the config of a model on the hub says, where no file of ours does.
    """

    benchmark: Benchmark | None = None
    benchmark_file: Document | None = None
    model: Model | None = None
    model_file: Document | None = None
    options: Options | None = None
    source: DataSource | None = None
    shape: Shape | None = None
    layout: Layout | None = None
    runs: list[tuple[Document, Run]] | None = None
    template: PromptTemplate | None = None
    described: dict[str, Any] = field(default_factory=dict)
    utility: tuple[Utility, ...] = ()


class Checker(Files):
    """An experiment that is right by itself, while it is checked together with the files that it names."""

    def __init__(
        self,
        files: Files,
        experiment: Experiment,
        data_root: str | Path | None,
        site: Site | None,
        settings: tuple[str, ...] = (),
    ):
        """Check ``experiment``, which has been read from the document of ``files``.

        Args:
            files: The experiment's document, and the files that it names.
            experiment: The experiment.
            data_root: A local folder in place of a hub source.
            site: The cluster whose nodes jobs are to run on; ``None``: this machine.
            settings: What the command line gives in place of the file's own, which is in the document already.
        """
        super().__init__(files.document, files.folders, files.problems)
        self.experiment, self.data_root, self.site, self.settings = experiment, data_root, site, settings
        self.parts = Parts()

    @property
    def retrain_split(self) -> str:
        """The forget split of which a published retrain has seen nothing."""
        benchmark = self.parts.benchmark
        return self.experiment.split if benchmark is None else retrain_split(self.experiment, benchmark)

    def run(self, function: Callable[..., Any]) -> Any:
        """Call a check with this checker and the parts that its further parameters name.

        Returns:
            What the check returns; ``None``, without calling it, where one of the parts is missing: whatever it is
            missing for has been reported.
        """
        _, *names = inspect.signature(function).parameters
        given = {name: getattr(self.parts, name) for name in names}
        return None if None in given.values() else function(self, **given)

    def config(self) -> Config:
        """Everything together. Raises ``ConfigError`` with all problems where there is one."""
        parts = self.parts
        if self.problems or any(getattr(parts, part.name) is None for part in fields(parts)):
            raise ConfigError(self.problems)
        assert parts.benchmark and parts.model and parts.layout and parts.source and parts.options and parts.shape
        assert parts.template is not None
        runs = tuple(run for _, run in parts.runs or ())
        return Config(
            self.experiment,
            parts.benchmark,
            parts.model,
            runs,
            parts.layout,
            parts.source,
            parts.options,
            parts.shape,
            self.settings,
            parts.template,
            parts.described,
            parts.utility,
        )
