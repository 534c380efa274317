"""What a loss is: a sum over units, for a mean over the GLOBAL batch, and what it asks of the run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar, Literal

from megatron_ext.config import Positions
from megatron_ext.schema import Named

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from megatron_ext.model.loss_inputs import LossInputs


class Loss(Named):
    """A differentiable function of what a model makes of a micro-batch.

    Losses never see a rank: collectives over vocabulary shards happen in ``vocab_parallel``, through ``inputs``. Files
    here import torch inside functions, because plans are checked where torch is not installed.

    Attributes:
        unit: What ``__call__`` sums over. The caller divides by the number of those units in the global batch.
        sees: ``logits``, or ``hidden`` for a loss on the hidden states that leave the last block which is built (see
            ``config.TrainableLayers``).
        needs_reference_logps: Whether it reads the log-probability of each sequence under the model before unlearning,
            one cached number.
        needs_reference_model: Whether it reads that model's logits or hidden states, from a second forward pass.
        needs_preferred_answers: Whether there is, beside each sequence, another answer to the same prompt.
    """

    name: str
    unit: ClassVar[Literal["token", "sequence"]]
    sees: ClassVar[Literal["logits", "hidden"]] = "logits"
    needs_reference_logps: ClassVar[bool] = False
    needs_reference_model: ClassVar[bool] = False
    needs_preferred_answers: ClassVar[bool] = False

    @classmethod
    def lacks(cls) -> str | None:
        for key, allowed in (("unit", ("token", "sequence")), ("sees", ("logits", "hidden"))):
            given = getattr(cls, key, None)
            if given not in allowed:
                return f"{key}: {given!r:.60} is not allowed; a ClassVar, {allowed[0]!r} or {allowed[1]!r}, is needed"
        return "'__call__' is missing" if cls.__call__ is Loss.__call__ else None

    @property
    def input_positions(self) -> Positions:
        """Which positions ``inputs`` holds: those that predict a labelled token (the only ones with targets and
        log-probabilities), those whose own token is labelled, or all of a sequence's."""
        return "predicting"

    def units(self, labels: np.ndarray, lengths: np.ndarray) -> float:
        """How many units a batch has: what the sum over it is divided by.

        Args:
            labels: int64 ``[B]``, labelled tokens of each sequence.
            lengths: int64 ``[B]``, tokens of each sequence, prompt included.

        Returns:
            Units of all its sequences.
        """
        if self.unit == "sequence":
            return len(labels)
        return int((lengths if self.input_positions == "all" else labels).sum())

    def problems(self, topics: Sequence[str]) -> list[str]:
        """What does not fit these topics: messages that begin with the loss's own key."""
        return []

    def __call__(self, inputs: LossInputs) -> Tensor:
        """The sum over the micro-batch's units: a scalar, fp32, to be minimised."""
        raise TypeError(f"{type(self).__name__} is abstract")
