"""The record of a judge's work on one evaluation, ``judgement.json``, made from the ``judgements.jsonl`` beside it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, field_validator

from pipeline.data.json_files import Record

JUDGEMENT = "judgement.json"
JUDGEMENTS = "judgements.jsonl"


class JudgementRecord(Record):
    """What ``judgement.json`` holds; a metric is null where the judge answered too little."""

    version: Literal[1] = Field(1, alias="schema")
    model: str
    benchmark: str
    split: str
    seed: int | None
    metrics: Mapping[str, int | float | None]
    counts: dict[str, Any]
    settings: dict[str, Any]
    rubric: dict[str, Any]
    provenance: dict[str, Any]

    @field_validator("settings")
    @classmethod
    def _names_the_judge(cls, settings: dict[str, Any]) -> dict[str, Any]:
        if not isinstance(settings.get("model"), str):
            raise ValueError("must hold 'model', the name of the judge's model")
        return settings

    @property
    def judge(self) -> str:
        """The name of the judge's model."""
        return str(self.settings["model"])
