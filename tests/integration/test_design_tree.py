"""The tree on docs/design.md is the one that is there; ``python -m tests.support.tree --write`` draws it anew."""

from __future__ import annotations

from tests.support import tree


def test_the_page_shows_every_file_and_no_other() -> None:
    (block,) = tree.BLOCK.findall(tree.PAGE.read_text(encoding="utf-8"))
    shown, said = tree.drawn(block)
    there = tree.files()
    assert shown == there, sorted(set(shown) ^ set(there))
    assert not [folder for folder, text in said.items() if not text], "a folder without a word about it"


def test_a_drawing_is_read_as_it_was_drawn() -> None:
    paths = [f"pipeline/file_{number}.py" for number in range(40)]
    paths += ["megatron_ext/config.py", "megatron_ext/model/families/llama.py", "pipeline/report/page.html.j2"]
    said = {"pipeline": "data and reports", "pipeline/report": "the page", "megatron_ext": "ranks"}
    shown, kept = tree.drawn(tree.draw(paths, said))
    assert shown == sorted(paths)
    assert {folder: kept[folder] for folder in said} == said
