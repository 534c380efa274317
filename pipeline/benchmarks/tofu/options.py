"""Settings of an evaluation on TOFU."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from pipeline.benchmarks.privacy import PrivacyOptions
from pipeline.benchmarks.request_sets import request_sets

MOST = 3  # requests: forget01, and what forget05 and forget10 add


class TofuOptions(PrivacyOptions):
    """What is asked of a model beside the scores of TOFU's paper, and how long its answers may be."""

    family: Literal["tofu"] = "tofu"
    max_new_tokens: int = Field(200, ge=1, description="of an answer, at most")
    requests: int = Field(
        1, ge=1, le=MOST, description="requests to forget that are asked about; the experiment's 'requests' say it"
    )

    @property
    def request_sets(self) -> tuple[str, ...]:
        """The sets of the requests after the first: of each, what it adds."""
        return request_sets(self.requests)
