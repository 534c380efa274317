"""Every path of the project that a page names is there, and so is every module and every target of make."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = [
    *sorted((ROOT / "docs").glob("*.md")),
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md")),
]
PATH = re.compile(
    r"(?<![\w./<-])((?:pipeline|megatron_ext|tests|perf|containers|workflow_configs)/[\w./-]+)(?![\w<*{]|-<)"
)
MODULE = re.compile(r"(?<!cluster )python -m ((?:pipeline|megatron_ext|perf|tests)[\w.]*)")
MADE = ("containers/images/",)  # what a build makes


def text_of(page: Path) -> str:
    """The page without code blocks that name a file in their first line: docs/extending.md makes those up."""
    return re.sub(r"^```\w+\n# .*?^```$", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_what_a_page_names_is_there(page: Path) -> None:
    text = text_of(page)
    paths = {name.rstrip("./") for name in PATH.findall(text) if not name.startswith(MADE)}
    assert not [name for name in paths if not (ROOT / name).exists()]
    modules = {name.rstrip(".") for name in MODULE.findall(text)}
    assert not [name for name in modules if importlib.util.find_spec(name) is None]
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = {
        name for line in re.findall(r"(?:`|^    )make ((?:[a-z-]+ ?)+)", text, re.MULTILINE) for name in line.split()
    }
    assert named <= targets


@pytest.mark.parametrize("name", ["README.md", "config/README.md", "CONTRIBUTING.md", "CHANGELOG.md"])
def test_a_link_leads_to_a_file_and_its_heading(name: str) -> None:
    """Pages that `make docs` does not check, or not where the repository is browsed."""
    page = ROOT / name
    for target, anchor in re.findall(r"\]\((?!https?:)([^)#\s]*)(?:#([^)\s]*))?\)", page.read_text(encoding="utf-8")):
        file = page.parent / target if target else page
        assert file.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.*)", file.read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor in {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_clean_removes_every_cache() -> None:
    """Those at the top that git does not look at, but for results and what people made themselves."""
    ignored = set((ROOT / ".gitignore").read_text().split())
    kept = {".snakemake/", "/results/", "/containers/images/", "/site.yaml", "__pycache__/"}
    makefile = (ROOT / "Makefile").read_text()
    removed = set(re.search(r"^clean:.*\n\trm -rf (.*)", makefile, re.MULTILINE)[1].split())
    assert {name.strip("/") for name in ignored - kept} == {name.replace("$(VENV)", ".venv") for name in removed}
