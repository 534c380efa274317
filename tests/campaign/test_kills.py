"""What the campaign of kills looks for; ``python -m tests.campaign kills`` does the killing, a minute a round."""

from __future__ import annotations

import json
import random
import subprocess
from pathlib import Path

import pytest

from pipeline.launch import lease
from tests.campaign import kills


def test_other_bits_and_what_is_left_are_noticed(tmp_path: Path) -> None:
    """A campaign that finds nothing must be able to find something: times are no bits, a weight and a step are."""
    campaign = kills.Campaign(tmp_path)
    run = campaign.results / kills.UNLEARNED
    (run / "checkpoint").mkdir(parents=True)
    (run / "checkpoint" / "model.safetensors").write_bytes(b"weights")
    step = {"step": 1, "loss": 0.5, "seconds": 2.0}
    (run / "steps.jsonl").write_text(json.dumps(step))
    before = campaign.bits()
    (run / "steps.jsonl").write_text(json.dumps({**step, "seconds": 3.0}))
    assert campaign.bits() == before and campaign.left() == []
    (run / "steps.jsonl").write_text(json.dumps({**step, "loss": 0.25}))
    assert campaign.bits() != before
    (run / "steps.jsonl").write_text(json.dumps(step))
    (run / "checkpoint" / "model.safetensors").write_bytes(b"weightz")
    assert campaign.bits() != before
    (run / lease.NAME).touch()
    (run / "resume").mkdir()
    assert len(campaign.left()) == 2


@pytest.mark.parametrize("victim", kills.VICTIMS)
def test_a_kill_that_meets_nobody_proves_nothing(victim: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where all has ended before its moment; the bits are those of a run that nobody disturbed, then."""
    campaign, starts = kills.Campaign(tmp_path), []

    def start() -> subprocess.Popen[bytes]:
        (campaign.results / kills.UNLEARNED).mkdir(parents=True)
        starts.append(subprocess.Popen(["true"], start_new_session=True))
        starts[-1].wait()
        return starts[-1]

    (campaign.results / kills.UNLEARNED).mkdir(parents=True)
    monkeypatch.setattr(campaign, "start", start)
    monkeypatch.setattr(campaign, "working", lambda rank: [])
    monkeypatch.setattr(campaign, "finish", lambda: 1)
    monkeypatch.setattr(campaign, "bits", lambda: "the same")
    monkeypatch.setattr(kills.time, "sleep", lambda seconds: None)
    problem = kills.one_round(campaign, "the same", victim, random.Random(0))
    assert problem == "in 3 tries nobody was there to be killed" and len(starts) == 3
