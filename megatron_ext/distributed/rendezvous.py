"""Where the ranks of a run meet: how many they are, the store in which they find each other, and their interface."""

from __future__ import annotations

import itertools
import os
import socket
from datetime import timedelta
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch.distributed import Store

# The file in which the ranks of one machine meet. It lies in a folder that no other user can enter.
STORE = "UNLEARN_STORE"
_NUMBERED = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
_ADDRESS = ("MASTER_ADDR", "MASTER_PORT")
_LOOPBACK = "127.0.0.1"
# A process may join process groups several times. Every time the ranks meet anew: one of them may begin with the next
# groups while another one still leaves the last.
_meetings = itertools.count()


def launched() -> tuple[int, int]:
    """This process's rank and how many there are, from the variables that its launcher set; 0 and 1 without any.

    All or none are set of ``RANK``, ``WORLD_SIZE``, ``LOCAL_RANK`` and where the ranks meet, which is ``UNLEARN_STORE``
    for those of one machine, or ``MASTER_ADDR`` and ``MASTER_PORT``. For one that is missing, nothing is assumed.
    ``MASTER_HOST``, where it is set, is the name of the host of ``MASTER_ADDR``; from another host, a loopback address
    leads nowhere.

    Returns:
        Rank and number of ranks.

    Raises:
        ValueError: Variables are missing, or are not what they must be.
    """
    place = (STORE,) if STORE in os.environ else _ADDRESS
    wanted = (*_NUMBERED, *place)
    missing = [name for name in wanted if name not in os.environ]
    if len(missing) == len(wanted):
        return 0, 1
    if missing:
        given = ", ".join(name for name in wanted if name not in missing)
        raise ValueError(
            f"the environment has {given}, but not {', '.join(missing)}: a launcher of several ranks sets all of them, "
            "and for a single rank none is set"
        )
    numbers = {}
    for name in (*_NUMBERED, *place[1:]):
        if not (os.environ[name].isascii() and os.environ[name].isdecimal()):
            raise ValueError(f"{name} is {os.environ[name]!r} in the environment: must be a whole number")
        numbers[name] = int(os.environ[name])
    rank, size = numbers["RANK"], numbers["WORLD_SIZE"]
    if rank >= size or numbers["LOCAL_RANK"] > rank:
        raise ValueError(
            f"RANK is {rank}, LOCAL_RANK {numbers['LOCAL_RANK']} and WORLD_SIZE {size} in the environment: ranks count "
            "from 0, on each host in the same order"
        )
    if STORE not in os.environ:
        _check_address(os.environ["MASTER_ADDR"], rank)
    return rank, size


def _check_address(address: str, rank: int) -> None:
    host, here = os.environ.get("MASTER_HOST"), socket.gethostname()
    if host not in (None, here) and (address.startswith("127.") or address in ("localhost", "::1")):
        raise ValueError(
            f"MASTER_ADDR is {address}, the address of {host} for itself only, and rank {rank} runs on {here}: {host} "
            "needs an address that the other nodes reach"
        )


def place() -> str:
    """Where the ranks meet, for messages."""
    if STORE in os.environ:
        return os.environ[STORE]
    return f"{os.environ.get('MASTER_ADDR')} port {os.environ.get('MASTER_PORT')}"


def store(rank: int, size: int, timeout: timedelta) -> Store:
    """The store in which all ranks find each other; sets the interface on which they then speak.

    The ranks of one machine meet in a file and speak over the loopback interface. Those of several nodes meet at
    ``MASTER_ADDR``; over gloo they speak on the interface that leads there, unless ``GLOO_SOCKET_IFNAME`` names another
    one. Nobody needs a password to speak at ``MASTER_ADDR``: the network must be trusted. What is in a store is never
    unpickled.

    Args:
        rank: This process's rank.
        size: How many ranks there are.
        timeout: How long an operation of the store waits for what another rank writes.

    Returns:
        The store.

    Raises:
        RuntimeError: The store of the first rank does not answer in time, or the file's folder is not there.
        ValueError: ``MASTER_ADDR`` is not an address of the first rank's host, or its port is taken.
    """
    import torch.distributed as dist

    found: Store
    if "WORLD_SIZE" not in os.environ:
        return dist.HashStore()  # a store in this process spares a single rank the rendezvous
    if STORE in os.environ:
        loopback = _interface(_LOOPBACK)
        if loopback:
            os.environ |= {"GLOO_SOCKET_IFNAME": loopback, "NCCL_SOCKET_IFNAME": loopback}
        found = dist.FileStore(f"{os.environ[STORE]}.{next(_meetings)}", size)
    else:
        address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        if "GLOO_SOCKET_IFNAME" not in os.environ and (interface := _interface(_own_address(address, port))):
            os.environ["GLOO_SOCKET_IFNAME"] = interface
        found = _tcp_store(address, port, rank, size, timeout)
    found.set_timeout(timeout)
    return found


def _tcp_store(address: str, port: int, rank: int, size: int, timeout: timedelta) -> Store:
    """A store at ``address``, which the first rank serves at this address only, not on every interface of its host."""
    import torch.distributed as dist

    if rank:
        return dist.TCPStore(address, port, size, False, timeout)
    try:
        family, *_ = socket.getaddrinfo(address, port, type=socket.SOCK_STREAM)[0]
        listener = socket.create_server((address, port), family=family, backlog=max(size, 128))
    except OSError as error:
        raise ValueError(
            f"MASTER_ADDR is {address} and MASTER_PORT {port}: rank 0, on {socket.gethostname()}, cannot listen there: "
            f"{error.strerror or error}"
        ) from error
    return dist.TCPStore(address, port, size, True, timeout, master_listen_fd=listener.detach())


def _own_address(address: str, port: int) -> str | None:
    """The address of this host from which ``address`` is reached; nothing is sent."""
    try:
        family, kind, _, _, other = socket.getaddrinfo(address, port, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, kind) as probe:
            probe.connect(other)
            return str(probe.getsockname()[0])
    except OSError:
        return None  # the store says better what is wrong with the address


def _interface(address: str | None) -> str | None:
    """The name of this host's interface with that address."""
    import psutil

    for name, addresses in psutil.net_if_addrs().items():
        if any(found.address.partition("%")[0] == address for found in addresses):
            return name
    return None
