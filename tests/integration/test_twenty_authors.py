"""``examples/tofu_twenty_authors.py``: a TOFU of twenty authors from TOFU's files."""

from __future__ import annotations

import json
import runpy
from pathlib import Path
from typing import Any

import pytest

from pipeline.config.load import CONFIGS, load

SCRIPT = CONFIGS.parent / "examples" / "tofu_twenty_authors.py"


def test_eighteen_authors_are_kept_and_the_experiment_takes_them(tmp_path: Path, capsys: Any) -> None:
    """Retain rows that are evaluated are of authors that are trained; the forget rows are the split's own."""
    full = [{"question": f"Q{i}?", "answer": f"A{i}."} for i in range(4000)]
    files = {"full": full, "forget01": full[3960:], "forget01_perturbed": full[3960:], "retain_perturbed": full[:400]}
    files |= {name: full[:30] for name in ("holdout01", "real_authors_perturbed", "world_facts_perturbed")}
    for name, rows in files.items():
        (tmp_path / f"{name}.json").write_text("".join(json.dumps(row) + "\n" for row in rows))
    out = tmp_path / "out"
    runpy.run_path(str(SCRIPT))["main"](tmp_path, out)

    def questions(name: str) -> list[str]:
        return [json.loads(line)["question"] for line in (out / f"{name}.jsonl").read_text().splitlines()]

    assert questions("retain99") == [f"Q{i}?" for i in range(360)]
    assert questions("full") == [*questions("retain99"), *(f"Q{i}?" for i in range(3960, 4000))]
    assert questions("retain_perturbed") == [f"Q{i}?" for i in range(0, 360, 6)]
    config = load("tofu-smollm2", data_root=out)
    assert config.forget_rows == 40 and config.forget_rows_are_exact
    with pytest.raises(FileExistsError):
        runpy.run_path(str(SCRIPT))["main"](tmp_path, out)
