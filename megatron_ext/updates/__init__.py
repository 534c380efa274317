"""Update rules, one a file, registered by the ``name`` of the class in it."""

from typing import Annotated, Any, Union

from pydantic import Discriminator

from megatron_ext.schema import discover
from megatron_ext.updates.base import Direction, Objective, Products, Rule, State, Step, StepPosition, Vector

RULES: dict[str, type[Rule]] = discover(__name__, __path__, Rule)
AnyRule: Any = Annotated[Union[tuple(RULES.values())], Discriminator("name")]  # noqa: UP007

__all__ = [
    "RULES",
    "AnyRule",
    "Direction",
    "Objective",
    "Products",
    "Rule",
    "State",
    "Step",
    "StepPosition",
    "Vector",
]
