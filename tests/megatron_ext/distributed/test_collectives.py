"""What ranks tell each other arrives, and is data whoever sent it."""

from __future__ import annotations

import json
import math
import pickle
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from megatron_ext.config import Layout, Runtime
from megatron_ext.distributed import process_groups
from tests.support.distributed import run_ranks

VALUES: list[Any] = [None, "", "ä\u2028", 0, -1, 0.1 + 0.2, math.pi * 1e300, True, [], {"a": [1, {"b": None}]}]
VALUES.append("x" * 9999)
ROOT = Path(__file__).parents[3]


class Code:
    """Pickled, it makes a file when it is read."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> Any:
        return Path.touch, (self.file,)


def exchange(file: Path) -> list[Any]:
    import torch
    import torch.distributed as dist

    from megatron_ext.distributed.collectives import from_first_rank, gather_from_ranks

    with process_groups.start(Runtime(layout=Layout(tensor=2), device="cpu", timeout_seconds=20.0)) as ranks:
        found: list[Any] = []
        for value in VALUES:
            read = partial(iter([value] if ranks.world_rank == 0 else []).__next__)  # is asked once, and of one rank
            found.append(from_first_rank(read, ranks))
        found += [gather_from_ranks([ranks.world_rank, "x" * ranks.world_rank, value], ranks) for value in VALUES]
        found.append(gather_from_ranks("own", ranks, ranks.data_group))
        pickled = torch.frombuffer(bytearray(pickle.dumps(Code(file))), dtype=torch.uint8)
        if ranks.world_rank == 0:
            dist.broadcast(torch.tensor(len(pickled)), src=0)
            dist.broadcast(pickled, src=0)
        else:
            with pytest.raises(ValueError):
                from_first_rank(lambda: None, ranks)
        return found


@pytest.mark.slow
def test_what_is_sent_arrives_and_is_never_unpickled(tmp_path: Path) -> None:
    gathered = [[[rank, "x" * rank, value] for rank in range(2)] for value in VALUES]
    expected = [*VALUES, *gathered, ["own"]]
    for found in run_ranks(exchange, 2, tmp_path / "made", timeout=60):
        assert json.dumps(found) == json.dumps(expected)
    assert not (tmp_path / "made").exists()


def send_object(file: Path) -> list[Any]:
    import torch.distributed as dist

    with process_groups.start(Runtime(layout=Layout(tensor=2), device="cpu", timeout_seconds=20.0)) as ranks:
        found: list[Any] = [None, None]
        dist.all_gather_object(found, [((("wd_mult", 0.0),), False), None, {"a": {1, 2}}])
        sent = [Code(file) if ranks.world_rank == 0 else None]
        if ranks.world_rank == 0:
            dist.broadcast_object_list(sent, src=0)
        else:
            with pytest.raises(pickle.UnpicklingError, match=r"an object of .*; allowed: plain data"):
                dist.broadcast_object_list(sent, src=0)
        return found


@pytest.mark.slow
def test_what_torch_unpickles_is_data(tmp_path: Path) -> None:
    """megatron-core's optimizer exchanges objects, so that torch's own way of reading them matters."""
    expected = [[((("wd_mult", 0.0),), False), None, {"a": {1, 2}}]] * 2
    assert run_ranks(send_object, 2, tmp_path / "made", timeout=60) == [expected] * 2
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize("package", ["megatron_ext", "pipeline"])
def test_no_collective_of_pickled_objects_is_used(package: str) -> None:
    """Of torch's collectives of objects, only what megatron-core needs is left."""
    names = [f"{verb}_object" for verb in ("broadcast", "gather", "scatter", "send", "recv")]
    texts = {file: file.read_text(encoding="utf-8") for file in sorted((ROOT / package).rglob("*.py"))}
    for file, text in texts.items():  # a simulation puts something else in the place of one, in one process
        texts[file] = text.replace('(dist, "all_gather_object", _own_object)', "")
    assert texts and [f"{file}: {name}" for file, text in texts.items() for name in names if name in text] == []
