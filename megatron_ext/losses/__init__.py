"""Forget and retain losses, one a file, registered by the ``name`` of the class in it."""

from typing import Annotated, Any, Union

from pydantic import Discriminator

from megatron_ext.losses.base import Loss
from megatron_ext.schema import discover

LOSSES: dict[str, type[Loss]] = discover(__name__, __path__, Loss)
AnyLoss: Any = Annotated[Union[tuple(LOSSES.values())], Discriminator("name")]  # noqa: UP007

__all__ = ["LOSSES", "AnyLoss", "Loss"]
