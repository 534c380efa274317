"""Sampled answers to the forget set's prompts: aligned with it, closed as it is, and the same at every layout."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from megatron_ext.data.sequences import Sequences
from megatron_ext.steps.alternatives import closing
from tests.support import tiny
from tests.support.distributed import run_ranks

END = 2
ROWS = [([5, 6, 7, 8, END], 3), ([9, 10, END], 2), ([4] * 60 + [END], 59)]  # the last one reaches the context of 64


def sample(folder: Path, out: str, layout: dict[str, int]) -> list[tuple[list[int], int]]:
    from megatron_ext.steps import alternatives

    spec = {
        "program": "alternatives",
        "checkpoint": str(folder / "fp32" / "llama3-tied"),
        "data": str(folder / "forget.npz"),
        "per_row": 4,
        "max_new_tokens": 9,
        "temperature": 1.5,
        "runtime": {"device": "cpu", "layout": layout, "timeout_seconds": 60},
        "output": str(folder / out),
    }
    (folder / f"{out}.yaml").write_text(yaml.safe_dump(spec))
    alternatives.main([str(folder / f"{out}.yaml")])
    made = Sequences.load(folder / out / "alternatives.npz")
    return [(ids.tolist(), prompt) for ids, prompt in map(made.row, range(len(made)))]


@pytest.mark.slow
def test_answers_follow_the_prompts_and_do_not_depend_on_the_layout(tmp_path: Path) -> None:
    tiny.write(tmp_path, ["llama3-tied"])
    Sequences.pack(ROWS).save(tmp_path / "forget.npz")
    (rows,) = run_ranks(sample, 1, tmp_path, "one", {})
    assert len(rows) == 4 * len(ROWS)
    for i, (ids, prompt) in enumerate(rows):
        own, length = ROWS[i // 4]
        assert (ids[:prompt], prompt) == (own[:length], length)
        assert ids[-1] == END and END not in ids[prompt:-1] and len(ids) <= min(prompt + 10, 64)
    assert len({tuple(ids) for ids, _ in rows}) > len(ROWS)
    summary: dict[str, Any] = json.loads((tmp_path / "one" / "summary.json").read_text())
    assert summary["sequences"] == 12 and summary["unchanged"] == sum(
        ids == ROWS[i // 4][0] for i, (ids, _) in enumerate(rows)
    )
    run_ranks(sample, 2, tmp_path, "two", {"tensor": 2})
    one, two = (tmp_path / out / "alternatives.npz" for out in ("one", "two"))
    assert two.read_bytes() == one.read_bytes()


def test_texts_that_are_not_closed_are_no_answers(tmp_path: Path) -> None:
    assert closing(Sequences.pack(ROWS), tmp_path) == END
    with pytest.raises(ValueError, match=r"forget.npz, row 1: ends with the token 7"):
        closing(Sequences.pack([ROWS[0], ([5, 7], 1)]), Path("forget.npz"))
