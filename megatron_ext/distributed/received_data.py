"""What other ranks send is data: torch's collectives of objects, which unpickle it, are kept from running code.

The project's own ranks send JSON (``collectives``). megatron-core's optimizer lets torch pickle lists of names
and numbers, and whoever reaches a rank's port could send something else in their place.
"""

from __future__ import annotations

import pickle
from typing import Any, NoReturn

from torch.distributed import distributed_c10d


class DataUnpickler(pickle.Unpickler):
    """Reads numbers, texts and containers of them. Everything else in a pickle begins with the name of a class or a
    function, and none is looked up."""

    def find_class(self, module_name: str, global_name: str) -> NoReturn:
        """Refuse a name; raises ``UnpicklingError``."""
        raise pickle.UnpicklingError(f"a rank sent an object of {module_name}.{global_name}; allowed: plain data")


def install() -> None:
    """Let torch's collectives of objects in this process read data only. Idempotent."""
    torch_distributed: Any = distributed_c10d
    if not hasattr(torch_distributed, "_unpickler"):
        raise RuntimeError("this version of torch reads what ranks send in another way; known: 2.13")
    torch_distributed._unpickler = DataUnpickler
