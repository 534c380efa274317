"""What happens to tensors without contents: bytes that are held, messages between ranks, numbers that are read."""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch._C._distributed_c10d import FakeWork
from torch.distributed import ProcessGroup, get_process_group_ranks
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

_aten = torch.ops.aten
_device = torch.ops.prim.device.default
_KINDS = {
    "allreduce_": "all-reduce",
    "allgather_": "all-gather",
    "_allgather_base_": "all-gather",
    "allgather_into_tensor_coalesced_": "all-gather",
    "_reduce_scatter_base_": "reduce-scatter",
    "reduce_scatter_tensor_coalesced_": "reduce-scatter",
    "alltoall_base_": "all-to-all",
    "broadcast_": "broadcast",
    "send": "send",
    "recv_": "receive",
}


@dataclass(frozen=True, order=True)
class Message:
    """A collective, or what is sent to one rank or received from one.

    Attributes:
        kind: Such as ``all-reduce``.
        group: Whose: ``world``, ``tensor``, ``pipeline``, ``data``, or the ranks' numbers.
        size: Bytes on this rank, the larger of what goes in and what comes out.
    """

    kind: str
    group: str
    size: int


class Recorder(TorchDispatchMode):
    """Stands between the program and torch's fake tensors, which must be entered first.

    No message is delivered. A number that is read is 1 if it is real and 0 if it is an integer or a truth value, so
    that nothing looks broken and no gradient looks zero. Every row that is chosen by a truth value is chosen.

    Attributes:
        messages: How often each message was exchanged.
        held: Bytes of all tensors that exist now.
        peak: The most that existed at a time.
    """

    def __init__(self, groups: Mapping[str, ProcessGroup]) -> None:
        """Begin with nothing.

        Args:
            groups: The process groups by what they are called.
        """
        super().__init__()
        self.messages: Counter[Message] = Counter()
        self.held = self.peak = 0
        self._groups = groups
        self._called: dict[str, str] = {group.group_name: name for name, group in groups.items()}
        self._known: set[int] = set()
        self._counting = True

    def begin(self) -> None:
        """Count messages, and the most bytes, from now."""
        self.messages.clear()
        self.peak = self.held

    @contextmanager
    def elsewhere(self, active: bool) -> Iterator[None]:
        """What is made within the context lies in the host's memory, and is not counted."""
        self._counting = not active
        try:
            yield
        finally:
            self._counting = True

    def passing(self, size: int) -> None:
        """Some bytes existed beside all others for a moment, which no operation showed."""
        self.peak = max(self.peak, self.held + size)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Answer an operation, or let fake tensors answer it."""
        if func is _device:
            return args[0].fake_device
        if func is _aten._local_scalar_dense.default:
            return 1.0 if args[0].is_floating_point() else 0
        if func.namespace == "c10d":
            return self._exchange(func, args)
        if func is _aten.index.Tensor:
            args = (args[0], [_chosen(index) for index in args[1]])
        out = func(*args, **(kwargs or {}))
        for made in (out,) if isinstance(out, Tensor) else tree_leaves(out):
            if isinstance(made, Tensor):
                self._see(made)
        return out

    def _exchange(self, func: Any, args: Any) -> Any:
        group = ProcessGroup.unbox(next(each for each in args if isinstance(each, torch.ScriptObject)))
        name = func._schema.name.removeprefix("c10d::")
        size = max(bytes_of(t for t in tree_leaves(each) if isinstance(t, Tensor)) for each in args[:2])
        self.messages[Message(_KINDS.get(name, name), self._name_of(group), size)] += 1
        work = FakeWork()
        work.seq_id = 0
        found = [args[0] if "Tensor" in str(each.type) else work.boxed() for each in func._schema.returns]
        return found[0] if len(found) == 1 else tuple(found)

    def _name_of(self, group: ProcessGroup) -> str:
        """What a group is called: as another one of the same ranks, if it is none of those given."""
        if group.group_name not in self._called:
            ranks = get_process_group_ranks(group)
            alike = (name for name, known in self._groups.items() if get_process_group_ranks(known) == ranks)
            self._called[group.group_name] = next(alike, f"ranks {', '.join(map(str, ranks))}")
        return self._called[group.group_name]

    def _see(self, made: Tensor) -> None:
        storage = made.untyped_storage()
        key = storage._cdata
        if key in self._known:
            return
        self._known.add(key)
        size = storage.nbytes() if self._counting else 0
        weakref.finalize(storage, self._forget, key, size)
        self.held += size
        self.peak = max(self.peak, self.held)

    def _forget(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.held -= size


def bytes_of(tensors: Iterable[Tensor]) -> int:
    """Bytes of the elements of some tensors."""
    return sum(each.numel() * each.element_size() for each in tensors)


def storage_bytes(tensors: Iterable[Tensor]) -> int:
    """Bytes of the storages behind some tensors, each once."""
    return sum({s._cdata: s.nbytes() for s in (each.untyped_storage() for each in tensors)}.values())


def _chosen(index: Tensor | None) -> Tensor | None:
    """Where every row is chosen, the rows' numbers."""
    if index is None or index.dtype != torch.bool:
        return index
    return torch.arange(index.numel(), device=index.device)
