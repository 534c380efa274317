"""How weights are rounded to few bits, as an attack is told of it."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from megatron_ext.schema import Strict

Scheme = Literal["int8", "int4", "fp4", "nf4"]
BLOCKS = (32, 64, 128, 256, 512, 1024, 2048, 4096)  # of bitsandbytes


class Quantisation(Strict):
    """How the matrices of decoder blocks are rounded (``megatron_ext.steps.quantise`` has the formulas)."""

    scheme: Scheme
    group: int | None = Field(
        None, ge=2, description="weights that share a scale; default: 64, under int8 a whole row, always"
    )
    backend: Literal["auto", "builtin", "bitsandbytes"] = Field(
        "auto", description="whose code rounds; auto: bitsandbytes where it is installed and a GPU is seen, else ours"
    )

    @property
    def group_size(self) -> int:
        return self.group or 64

    @model_validator(mode="after")
    def _known(self) -> Quantisation:
        if self.scheme == "int8" and self.group is not None:
            raise ValueError("group: int8 has a scale a row, and no groups")
        if self.backend == "bitsandbytes" and self.scheme == "int4":
            raise ValueError("backend: bitsandbytes has no scheme 'int4'; allowed: 'auto', 'builtin'")
        if self.backend == "bitsandbytes" and self.group not in (None, *BLOCKS):
            allowed = ", ".join(map(str, BLOCKS))
            raise ValueError(f"group: bitsandbytes has no groups of {self.group}; allowed: {allowed}")
        return self
