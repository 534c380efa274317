"""Settings of an evaluation on TOFU."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from pipeline.benchmarks.privacy import PrivacyOptions


class TofuOptions(PrivacyOptions):
    """What is asked of a model beside the scores of TOFU's paper, and how long its answers may be."""

    family: Literal["tofu"] = "tofu"
    max_new_tokens: int = Field(200, ge=1, description="of an answer, at most")
