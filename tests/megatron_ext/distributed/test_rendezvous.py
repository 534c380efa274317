"""Where ranks meet: what they make of their launcher's variables, and who else can speak there."""

from __future__ import annotations

import os
import socket
import time
from pathlib import Path

import pytest

from megatron_ext.config import Layout, Runtime
from megatron_ext.distributed import process_groups, rendezvous
from tests.support.distributed import free_ports, run_ranks

pytestmark = pytest.mark.slow

NUMBERS = {"RANK": "1", "WORLD_SIZE": "4", "LOCAL_RANK": "1"}
COMPLETE = {**NUMBERS, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "20000"}
LOCAL = {**NUMBERS, "UNLEARN_STORE": "/tmp/unlearn-ranks-0/store"}


@pytest.fixture(autouse=True)
def nothing_given(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*COMPLETE, *LOCAL, "MASTER_HOST", "GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
        monkeypatch.setenv(name, "")  # so that what a test sets goes
        monkeypatch.delenv(name)


def give(monkeypatch: pytest.MonkeyPatch, **variables: str) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)


def test_all_or_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    assert rendezvous.launched() == (0, 1)
    give(monkeypatch, **COMPLETE)
    assert rendezvous.launched() == (1, 4)
    give(monkeypatch, UNLEARN_STORE=LOCAL["UNLEARN_STORE"], MASTER_PORT="of the caller", MASTER_HOST="n17")
    assert rendezvous.launched() == (1, 4), "where there is a file, an address means nothing"


@pytest.mark.parametrize(
    ("name", "given"),
    [*((name, COMPLETE) for name in COMPLETE), *((name, LOCAL) for name in NUMBERS), ("MASTER_ADDR", LOCAL)],
)
def test_a_variable_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch, name: str, given: dict[str, str]) -> None:
    given = {key: value for key, value in given.items() if key != name}
    if name == "MASTER_ADDR":
        given.pop("UNLEARN_STORE", None)
    give(monkeypatch, **given)
    with pytest.raises(ValueError, match=rf"but not {name}.*: a launcher of several ranks sets all of them"):
        rendezvous.launched()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"RANK": "one"}, "RANK is 'one'"),
        ({"WORLD_SIZE": "-4"}, "WORLD_SIZE is '-4'"),
        ({"MASTER_PORT": ""}, "MASTER_PORT is ''"),
        ({"MASTER_PORT": "\u0662\u0660"}, "MASTER_PORT is '\u0662\u0660'"),
        ({"RANK": "4"}, "RANK is 4, LOCAL_RANK 1 and WORLD_SIZE 4"),
        ({"LOCAL_RANK": "2"}, "LOCAL_RANK 2"),
        ({"MASTER_HOST": "n17"}, "MASTER_ADDR is 127.0.0.1, the address of n17 for itself only, and rank 1 runs on"),
        ({"MASTER_HOST": "n17", "MASTER_ADDR": "localhost"}, "MASTER_ADDR is localhost"),
        ({"MASTER_HOST": "n17", "MASTER_ADDR": "::1"}, "MASTER_ADDR is ::1"),
    ],
)
def test_what_cannot_be_is_refused(monkeypatch: pytest.MonkeyPatch, changes: dict[str, str], message: str) -> None:
    give(monkeypatch, **(COMPLETE | changes))
    with pytest.raises(ValueError) as error:
        rendezvous.launched()
    assert message in str(error.value)


@pytest.mark.parametrize(
    "changes", [{"MASTER_HOST": socket.gethostname()}, {"MASTER_HOST": "n17", "MASTER_ADDR": "n17"}]
)
def test_a_loopback_address_serves_the_ranks_of_its_own_host(
    monkeypatch: pytest.MonkeyPatch, changes: dict[str, str]
) -> None:
    give(monkeypatch, **(COMPLETE | changes))
    assert rendezvous.launched() == (1, 4)


@pytest.mark.parametrize("rank", ["0", "1"])
@pytest.mark.parametrize("file", [False, True])
def test_a_rank_whose_others_do_not_come_says_where_it_waited(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, rank: str, file: bool
) -> None:
    (port,) = free_ports(1)
    meeting = {"UNLEARN_STORE": str(tmp_path / "store")} if file else {"MASTER_PORT": str(port)}
    give(monkeypatch, **(COMPLETE | {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": "2"} | meeting))
    place = str(tmp_path / "store") if file else f"127.0.0.1 port {port}"
    began = time.monotonic()
    with (
        pytest.raises(RuntimeError) as error,
        process_groups.start(Runtime(layout=Layout(tensor=2), device="cpu", timeout_seconds=1.0)),
    ):
        raise AssertionError("started")
    assert f"rank {rank} of 2 on {socket.gethostname()}: the ranks did not all meet at {place} within 1 s" in (
        str(error.value)
    )
    assert time.monotonic() - began < 30


def test_an_address_that_is_not_the_first_ranks_own_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a documentation network: no host has it."""
    give(monkeypatch, **(COMPLETE | {"RANK": "0", "LOCAL_RANK": "0", "MASTER_ADDR": "192.0.2.1"}))
    runtime = Runtime(layout=Layout(tensor=4), device="cpu", timeout_seconds=2.0)
    with pytest.raises(ValueError, match=r"MASTER_ADDR is 192\.0\.2\.1 .* cannot listen there"):  # noqa: SIM117
        with process_groups.start(runtime):
            raise AssertionError("started")


def listening(place: dict[str, str]) -> tuple[set[str], str | None]:
    """On which addresses a rank listens once its groups are made, and the interface that it was told."""
    import psutil
    import torch
    import torch.distributed as dist

    if place:
        del os.environ["UNLEARN_STORE"]
        os.environ.update(place)
    with process_groups.start(Runtime(layout=Layout(tensor=2), device="cpu", timeout_seconds=20.0)):
        dist.all_reduce(torch.ones(1))
        found = {each.laddr.ip for each in psutil.Process().net_connections("inet") if each.status == "LISTEN"}
        dist.all_reduce(torch.ones(1))
    return found, os.environ.get("GLOO_SOCKET_IFNAME")


@pytest.mark.parametrize("file", [False, True])
def test_ranks_listen_on_no_other_interface(file: bool) -> None:
    """Torch's own store, which all ranks of several nodes ask, would listen on every interface."""
    (port,) = free_ports(1)
    place = {} if file else {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    loopback = next(name for _, name in socket.if_nameindex() if name == "lo")
    assert run_ranks(listening, 2, place, timeout=60) == [({"127.0.0.1"}, loopback)] * 2


def meet_twice() -> list[float]:
    import torch
    import torch.distributed as dist

    found = []
    for factor in (1, 10):
        with process_groups.start(Runtime(layout=Layout(tensor=2), device="cpu", timeout_seconds=20.0)) as ranks:
            value = torch.tensor(float(factor * (ranks.world_rank + 1)))
            dist.all_reduce(value)
            found.append(float(value))
    return found


def test_ranks_meet_again() -> None:
    assert run_ranks(meet_twice, 2, timeout=60) == [[3.0, 30.0]] * 2
