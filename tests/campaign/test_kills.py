"""What the campaign of kills looks for; ``python -m tests.campaign kills`` does the killing, a minute a round."""

from __future__ import annotations

import json
from pathlib import Path

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
