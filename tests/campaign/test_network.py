"""A sample of the campaign of bad networks; ``python -m tests.campaign network`` tries every fault everywhere."""

from __future__ import annotations

import pytest

from tests.campaign import network

SAMPLE = [
    network.Case("half an answer", "file", 1),
    network.Case("a page of HTML", "list", -1),
    network.Case("a redirect to nobody", "head", -1),
    network.Case("404", "head", 1),
    network.Case("half an answer", "judge", 1),
    network.Case("429, again in 0 s", "judge", -1),
]


@pytest.mark.slow
def test_a_bad_network_is_outlived_or_told() -> None:
    """The hub's real library and the judge's client, on sockets; nothing is put in their place."""
    with network.served() as server:
        assert [(str(case), problem) for case in SAMPLE if (problem := network.wrong(server, case))] == []


@pytest.mark.slow
def test_a_fault_that_nothing_meets_proves_nothing() -> None:
    """As where the hub's library came to ask otherwise."""
    with network.served() as server:
        assert "no such request was made" in (network.wrong(server, network.Case("500", "another kind", 1)) or "")
