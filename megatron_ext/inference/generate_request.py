"""What generation is asked for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from megatron_ext.inference.sampling import Sampling


@dataclass(frozen=True)
class GenerateRequest:
    """A prompt to continue.

    Attributes:
        prompt: Token ids.
        max_new_tokens: Bound on the continuation.
        stops: Texts of which the first to appear ends the continuation.
        sampling: How new tokens are drawn; None for the most likely ones.
    """

    prompt: list[int]
    max_new_tokens: int
    stops: tuple[str, ...] = ()
    sampling: Sampling | None = None


# Whether the text of new ids holds one of the stops; megatron_ext knows no tokenizer. Called when ids have one more.
Stopped = Callable[[list[int], tuple[str, ...]], bool]
