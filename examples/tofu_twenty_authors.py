"""Make a TOFU of twenty authors, of whom two are forgotten: ``python examples/tofu_twenty_authors.py TOFU OUT``.

TOFU is the folder of its files (``full.json`` or ``.jsonl`` and the others, as on the hub). OUT gets files of the same
names, for the split forget01: its two authors, and the first eighteen of TOFU's for the retain set. Every sixth of
their questions is evaluated, and every fifth one about real authors and the world.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

KEPT_ROWS = 18 * 20
WHOLE = ("forget01", "forget01_perturbed", "holdout01")
SOME = ("real_authors_perturbed", "world_facts_perturbed")


def rows(folder: Path, name: str) -> list[dict[str, object]]:
    """The rows of one of TOFU's files, whose name may end in two ways."""
    file = next(path for ending in ("jsonl", "json") if (path := folder / f"{name}.{ending}").is_file())
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]


def main(tofu: Path, out: Path) -> None:
    """Write the files."""
    out.mkdir(parents=True)
    kept = rows(tofu, "full")[:KEPT_ROWS]
    questions = {row["question"] for row in kept}
    made = {name: rows(tofu, name) for name in WHOLE}
    made |= {name: rows(tofu, name)[::5] for name in SOME}
    made |= {"retain99": kept, "full": [*kept, *made["forget01"]]}
    made["retain_perturbed"] = [row for row in rows(tofu, "retain_perturbed") if row["question"] in questions][::6]
    for name, some in made.items():
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in some)
        (out / f"{name}.jsonl").write_text(text, encoding="utf-8")
        print(f"{name}: {len(some)} rows")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    main(Path(sys.argv[1]), Path(sys.argv[2]))
