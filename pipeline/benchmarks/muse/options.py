"""Settings of an evaluation on MUSE."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from pipeline.benchmarks.muse.passages import REQUESTS
from pipeline.benchmarks.privacy import PrivacyOptions
from pipeline.benchmarks.request_sets import request_sets


class MuseOptions(PrivacyOptions):
    """What is asked of a model, and how long its answers may be; by default as in MUSE and open-unlearning."""

    family: Literal["muse"] = "muse"
    verbmem_new_tokens: int = Field(128, ge=1, description="of a continuation, at most")
    knowmem_new_tokens: int = Field(32, ge=1, description="of an answer, at most")
    shorten_few_shot: bool = Field(
        False, description="leave out answered questions, first ones first, where a prompt is too long for the context"
    )
    memorisation: bool = Field(True, description="extraction strength and exact memorisation of the continuations")
    privleak: bool = Field(True, description="PrivLeak, from Min-40% and retrain's evaluation")
    privleak_tokens: int = Field(2048, ge=2, description="of a text, at most; the model's context may hold fewer")
    requests: int = Field(
        1, ge=1, le=REQUESTS, description="requests to forget that are asked about; the experiment's 'requests' say it"
    )

    @property
    def request_sets(self) -> tuple[str, ...]:
        """The sets of the requests after the first: of each, passages of what it adds."""
        return request_sets(self.requests)
