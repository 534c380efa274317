"""A sample of the campaign of bad inputs; ``python -m tests.campaign inputs`` tries the whole grammar."""

from __future__ import annotations

import pytest

from tests.campaign import inputs


@pytest.mark.slow
def test_bad_inputs_are_refused_before_any_work(capsys: pytest.CaptureFixture[str]) -> None:
    """Kinds of files together that no other test has: one good experiment, with one thing spoiled at a time."""
    assert len(inputs.cases()) >= 170 and len({case.name for case in inputs.cases()}) == len(inputs.cases())
    assert inputs.run(24, seed=5) == 0, capsys.readouterr().out
    good = inputs.refused(inputs.Case("nothing is spoiled", lambda world: world.model(), "own.yaml"))
    assert good is not None and good.startswith("status 0"), "else anything would be refused"
