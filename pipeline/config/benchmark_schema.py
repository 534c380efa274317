"""What a benchmark file may say."""

from __future__ import annotations

from typing import Any

from pydantic import Field, field_validator, model_validator

from megatron_ext.schema import Line, Strict
from pipeline.benchmarks import AnySource, families
from pipeline.config.located_yaml import hint
from pipeline.config.model_schema import Name
from pipeline.data.settings import FilesSource


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
    mini: Name | None = Field(None, description="the experiment whose models and data stand in with 'scale: mini'")

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
