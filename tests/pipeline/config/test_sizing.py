"""Ranks on the nodes of a cluster."""

from __future__ import annotations

from typing import Any

import pytest

from megatron_ext.config import Layout, Runtime
from pipeline.config.site import Site
from pipeline.config.sizing import Nodes, on_gpus, spread


def runtime(ranks: int, **values: Any) -> Runtime:
    return Runtime(layout=Layout(data=ranks), **values)


@pytest.mark.parametrize(
    ("ranks", "site", "nodes"),
    [
        (1, {}, Nodes(1, 1, 1)),
        (8, {}, Nodes(1, 8, 8)),
        (32, {}, Nodes(4, 8, 8)),
        (12, {}, Nodes(2, 6, 6)),
        (4, {"gpus_per_node": 1}, Nodes(4, 1, 1)),
        (6, {"gpus_per_node": 4}, Nodes(2, 3, 3)),
        (4, {"gpus_per_node": 0}, Nodes(1, 4, 0)),
        (4, {"gpus_per_node": 0, "cpus_per_node": 2}, Nodes(2, 2, 0)),
        (4, {"gpus_per_node": 0, "cpus_per_node": 1}, Nodes(4, 1, 0)),
    ],
)
def test_a_layout_takes_as_few_nodes_as_hold_it(ranks: int, site: dict[str, Any], nodes: Nodes) -> None:
    found = spread(runtime(ranks), Site(**site))
    assert found == nodes and found.total == ranks


def test_threads_are_cores() -> None:
    assert spread(runtime(4, device="cpu", threads=2), Site(cpus_per_node=5)) == Nodes(2, 2, 0)


@pytest.mark.parametrize(
    ("ranks", "values", "site", "message"),
    [
        (11, {}, {}, r"layout: 11 ranks need 2 nodes, .*gpus_per_node is 8.* nearest .*: 10, 12"),
        (3, {"device": "cpu"}, {"cpus_per_node": 2}, r"layout: 3 ranks need 2 nodes.*room for 2 ranks a node.*: 2, 4"),
        (
            2,
            {"device": "cuda"},
            {"gpus_per_node": 0},
            r"device: 'cuda', but gpus_per_node is 0; allowed: 'auto', 'cpu'",
        ),
        (1, {"threads": 4}, {"cpus_per_node": 3}, r"threads: 4 of each rank, but cpus_per_node is 3"),
        (8, {"threads": 4}, {"cpus_per_node": 16}, r"threads: 4 of each of a node's 8 ranks, .*16; allowed: at most 2"),
    ],
)
def test_ranks_that_nodes_cannot_hold(ranks: int, values: dict[str, Any], site: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        spread(runtime(ranks, **values), Site(**site))


def test_a_plan_for_nodes_asks_nothing_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """A login node has no GPUs, or one of its own."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert on_gpus("auto", Site()) and not on_gpus("auto")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    assert not on_gpus("auto", Site(gpus_per_node=0)) and on_gpus("auto")
    assert on_gpus("cuda", Site()) and not on_gpus("cpu", Site())
