"""What an experiment may say of attacks on the models that it evaluates."""

from __future__ import annotations

from typing import Annotated

from pydantic import Discriminator, Field, Tag, model_validator

from megatron_ext.config import Training
from megatron_ext.config.quantisation import Quantisation, Scheme
from megatron_ext.schema import Strict
from pipeline.config.method_schema import Batches
from pipeline.config.model_schema import Name, kind


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
        Annotated[Annotated[list[Relearn], Tag("plain")] | Annotated[Relearn, Tag("mapping")], Discriminator(kind)]
        | None
    ) = None
    quantise: list[
        Annotated[Annotated[Scheme, Tag("plain")] | Annotated[Quantise, Tag("mapping")], Discriminator(kind)]
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
