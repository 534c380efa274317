"""A sample of the campaign of bad inputs; ``python -m tests.campaign inputs`` tries the whole grammar."""

from __future__ import annotations

import sys

import pytest

from tests.campaign import __main__ as program
from tests.campaign import inputs


@pytest.mark.slow
def test_bad_inputs_are_refused_before_any_work(capsys: pytest.CaptureFixture[str]) -> None:
    """Kinds of files together that no other test has: one good experiment, with one thing spoiled at a time."""
    assert len(inputs.cases()) >= 170 and len({case.name for case in inputs.cases()}) == len(inputs.cases())
    assert inputs.run(24, seed=5) == 0, capsys.readouterr().out
    good = inputs.refused(inputs.Case("nothing is spoiled", lambda world: world.model(), "own.yaml"))
    assert good is not None and good.startswith("status 0"), "else anything would be refused"


@pytest.mark.parametrize("count", ["0", "-1"])
def test_a_campaign_of_nothing_is_no_success(
    count: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["campaign", "kills", "--count", count])
    with pytest.raises(SystemExit) as stopped:
        program.main()
    assert stopped.value.code == 2 and f"--count {count}: nothing would be tried" in capsys.readouterr().err
