"""Settings of an evaluation on a user's own data."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from megatron_ext.schema import Strict
from pipeline.benchmarks.custom.sets import Form, Part
from pipeline.benchmarks.privacy import PrivacyOptions

FORGOTTEN = ("forget", "request")  # parts of which a model is to know nothing in the end
PAIRS = (("forget", "holdout"), ("forget_texts", "holdout_texts"))  # sets whose members attacks tell apart


class Asked(Strict):
    """What a set holds; see ``pipeline.benchmarks.custom.sets.EvaluatedSet``.

    ``perturbed``, ``paraphrased``: whether every row has wrong answers, or its answer in other words.
    """

    form: Form
    part: Part
    rows: int = Field(ge=1, description="questions, sentences or texts")
    perturbed: bool = False
    paraphrased: bool = False


class CustomOptions(PrivacyOptions):
    """What is asked of a model, and how long its answers may be. ``asked`` follows from the benchmark's source."""

    family: Literal["custom"] = "custom"
    asked: dict[str, Asked] = Field(description="by evaluated set what it holds; filled in from the benchmark's source")
    max_new_tokens: int = Field(64, ge=1, description="of an answer or a continuation, at most")
    pieces: int = Field(100, ge=1, description="of each set of texts, at most, that are asked about; spread evenly")
    memorisation: bool = Field(True, description="extraction strength and exact memorisation of every set")

    @property
    def attacked(self) -> tuple[str, str] | None:
        """The set of members and the set of others that attacks on membership compare; ``None`` without a holdout."""
        return next((pair for pair in PAIRS if self.asked.keys() >= {*pair}), None)

    @property
    def leaking(self) -> list[str]:
        """The sets that leak@k is of: questions about what is forgotten."""
        return [name for name, one in self.asked.items() if one.form == "questions" and one.part == "forget"]

    @model_validator(mode="after")
    def _has_holdout(self) -> Self:
        if self.needs_holdout and self.attacked is None:
            key = "membership" if self.membership else "privleak"
            raise ValueError(f"{key}: needs a 'holdout' set of the same form as the forget set: questions, or texts")
        if self.leak and not self.leaking:
            raise ValueError("leak: needs questions among what is forgotten")
        return self

    def scored_by_token(self, name: str) -> bool:
        """Whether numbers of every token of a set's answers are wanted."""
        attacked = self.privleak or not {"min_k", "min_k_plus_plus"}.isdisjoint(self.membership)
        return (attacked and name in (self.attacked or ())) or (self.memorisation and self.remembered(name))

    def remembered(self, name: str) -> bool:
        """Whether memorisation is measured on a set."""
        return self.memorisation and self.asked[name].form != "cloze" and self.asked[name].part != "holdout"
