"""The tree of both packages as docs/design.md draws it: ``python -m tests.support.tree`` says where the two differ.

``--write`` draws it anew from the files that git knows or would add. What the page says about a folder is kept; a new
folder gets the first sentence of its package's docstring.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import textwrap
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "design.md"
PACKAGES = ("pipeline", "megatron_ext")
BLOCK = re.compile(r"(?<=<!-- tree -->\n).*?(?=<!-- /tree -->)", re.DOTALL)
FOLDER = re.compile(r"^( *)([\w-]+)/(?:  +(\S.*))?$")
WIDTH = 118


def files() -> list[str]:
    """Paths of the files of both packages, sorted. Left out are ``__init__.py``, which every package has."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "--deduplicate", *PACKAGES]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    return sorted(name for name in listed if not name.endswith("/__init__.py") and (ROOT / name).is_file())


def drawn(text: str) -> tuple[list[str], dict[str, str]]:
    """What a drawing shows: paths of files, sorted, and what is said about each folder."""
    paths: list[str] = []
    said: dict[str, str] = {}
    above: list[str] = []
    for line in textwrap.dedent(text).splitlines():
        if found := FOLDER.match(line):
            above = [*above[: len(found[1]) // 2], found[2]]
            said["/".join(above)] = found[3] or ""
        else:
            paths += ["/".join([*above[: (len(line) - len(line.lstrip())) // 2], name]) for name in line.split()]
    return sorted(paths), said


def draw(paths: Iterable[str], said: dict[str, str]) -> str:
    """Each folder with what is said about it, then its files, then the folders in it."""
    paths = list(paths)
    folders = {str(parent) for path in paths for parent in PurePosixPath(path).parents} - {"."}
    lines: list[str] = []
    for folder in sorted(folders, key=lambda name: (PACKAGES.index(name.split("/")[0]), name.split("/"))):
        depth = folder.count("/")
        name = "  " * depth + folder.rsplit("/", 1)[-1] + "/"
        lines.append(f"{name:<24}  {said.get(folder) or _docstring(folder)}".rstrip())
        inside = "  ".join(path.rsplit("/", 1)[1] for path in paths if path.rsplit("/", 1)[0] == folder)
        indent = "  " * (depth + 1)
        lines += textwrap.wrap(inside, WIDTH, initial_indent=indent, subsequent_indent=indent, break_on_hyphens=False)
    return textwrap.indent("\n".join(lines), "    ") + "\n"


def _docstring(folder: str) -> str:
    file = ROOT / folder / "__init__.py"
    text = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) if file.is_file() else None
    return (text or "").partition("\n")[0].partition(". ")[0].rstrip(".").replace("``", "")


def main(arguments: list[str]) -> None:
    """Compare the page with the files, or write it."""
    page = PAGE.read_text(encoding="utf-8")
    (block,) = BLOCK.findall(page)
    shown, said = drawn(block)
    if arguments == ["--write"]:
        PAGE.write_text(BLOCK.sub(lambda _: f"\n{draw(files(), said)}\n", page), encoding="utf-8")
    elif missing := set(files()) ^ set(shown):
        sys.exit(f"{PAGE.relative_to(ROOT)} and the packages differ in: {', '.join(sorted(missing))}")


if __name__ == "__main__":
    main(sys.argv[1:])
