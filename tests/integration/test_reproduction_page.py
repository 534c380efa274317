"""docs/reproduction.md lists every published table and figure; ``make lint`` compares it with the experiments."""

from __future__ import annotations

import re

import pytest

from tests.support import reproduce_mini
from tests.support.reproduction_page import PAGE, PAPERS, experiments

WANTED = {
    "blur": [
        *(
            "Table 2, forget05",
            "Table 2, forget10",
            "Table 3, News",
            "Table 3, Books",
            "Table 4",
            "Table 8",
            "Figure 1",
        ),
        *("Figures 2 and 3", "Figure C.1", "Figures C.2 to C.4", "Figure C.5", "Figure C.6", "Figure C.7"),
        *("grid of Table 2, forget05", "grid of Table 2, forget10", "grid of Table 3, Books", "grids of Table 4"),
    ],
    "pdu": [f"TOFU forget{part}" for part in ("01", "05", "10")] + ["MUSE-News", "MUSE-Books"],
    "ofmu": ["TOFU forget05", "TOFU forget10", "WMDP"],
    "open-unlearning": [f"TOFU forget{part}" for part in ("01", "05", "10")] + ["MUSE-News", "MUSE-Books"],
}


@pytest.mark.parametrize("paper", PAPERS)
def test_each_table_and_figure_has_an_experiment_that_is_listed(paper: str) -> None:
    """By a list made by hand: a file that is deleted would leave the generated table without a trace."""
    (block,) = re.findall(rf"<!-- {paper} -->(.*)<!-- /{paper} -->", PAGE.read_text(), re.DOTALL)
    titles = [line.split("|")[1].strip() for line in block.strip().splitlines()[2:]]
    missing = [each for each in WANTED[paper] if not any(title.endswith(each) for title in titles)]
    assert missing == []
    assert [name for name in experiments(paper) if f"`{name}`" not in block] == []


def test_every_small_experiment_is_some_commits_share() -> None:
    found = {reproduce_mini.share(f"{number:040x}") for number in range(200)}
    every = {name for paper in PAPERS for name in experiments(paper)}
    grids = {f"blur-grid-{name}" for name in ("tofu-forget05", "tofu-forget10", "wmdp")}
    assert every - found == {"blur-figure-c1", "blur-figure-c7", *grids}, "those of more models than CI has time for"
