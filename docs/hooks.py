"""What `make docs` adds to the pages of this folder: the reference of both packages, and the repository's own files.

A page may link to any file of the repository, so that the link works where the repository is browsed. In the built
pages a link to a Python file leads to its place in the reference, one to a file that is a page of its own to that page,
and of any other file only the link's text remains.
"""

from __future__ import annotations

import ast
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("pipeline", "megatron_ext")
#: Files at the top of the repository that are pages too.
TOP = {"CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md", "SECURITY.md": "security.md"}
LINK = re.compile(r"(?<!!)\[([^\]]*)\]\(([^)#\s]+)(#[^)]*)?\)")


def rooms() -> dict[str, list[str]]:
    """Each package with a Python file in it, by its dotted name, with the dotted names of its modules, itself first."""
    found: dict[str, list[str]] = {}
    for file in sorted(path for name in PACKAGES for path in (ROOT / name).rglob("*.py")):
        package = ".".join(file.parent.relative_to(ROOT).parts)
        modules = found.setdefault(package, [])
        if file.name == "__init__.py":
            modules.insert(0, package)
        else:
            modules.append(f"{package}.{file.stem}")
    return {name: found[name] for name in sorted(found, key=lambda name: (PACKAGES.index(name.split(".")[0]), name))}


def on_config(config: Any) -> Any:
    """Put the reference behind the pages that ``mkdocs.yml`` lists."""
    pages = [{name: f"reference/{name}.md"} for name in rooms()]
    config.nav = [*config.nav, {"Reference": [{"Where is what": "reference/index.md"}, *pages]}]
    return config


def on_files(files: Files, config: Any) -> Files:
    """Add the pages that have no file in this folder."""
    for name, page in TOP.items():
        files.append(File.generated(config, page, content=_rewritten(ROOT / name, page)))
    files.append(File.generated(config, "reference/index.md", content="\n".join(_index())))
    for name, modules in rooms().items():
        text = "\n".join([f"# {name}", "", *(f"::: {module}\n" for module in modules)])
        files.append(File.generated(config, f"reference/{name}.md", content=text))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Rewrite the links of a page of this folder that lead out of it."""
    path = ROOT / "docs" / page.file.src_uri
    return _links(markdown, path.parent, page.file.src_uri) if path.is_file() else markdown


def on_post_page(output: str, page: Any, **_: Any) -> str:
    """Refuse a page that would load something from another server."""
    if found := re.search(r"<(?:script|link|img|iframe)\b[^>]*\b(?:src|href)=[\"']?(?:https?:)?//[^>]*", output):
        raise PluginError(f"{page.file.src_uri}: would be loaded from elsewhere: {found[0]}")
    return output


def _rewritten(file: Path, page: str) -> str:
    return _links(file.read_text(encoding="utf-8"), file.parent, page)


def _links(markdown: str, folder: Path, page: str) -> str:
    """The text with every link to a file of the repository as the built pages need it; code is left alone."""

    def link(found: re.Match[str]) -> str:
        text, target, anchor = found[1], found[2], found[3] or ""
        if "://" in target or target.startswith("mailto:"):
            return found[0]
        file = Path(os.path.normpath(folder / target))
        inside = file.relative_to(ROOT).as_posix()
        if inside in TOP or inside.startswith("docs/"):
            there = TOP.get(inside, inside.removeprefix("docs/"))
            return f"[{text}]({os.path.relpath(there, Path(page).parent)}{anchor})"
        if not file.exists():
            raise PluginError(f"{page}: the link [{text}]({target}) leads to no file")
        if file.suffix == ".py" and inside.split("/")[0] in PACKAGES:
            return f"[{text}][{inside.removesuffix('.py').removesuffix('/__init__').replace('/', '.')}]"
        return text

    parts = re.split(r"(^```.*?^```$|`[^`\n]+`)", markdown, flags=re.DOTALL | re.MULTILINE)
    return "".join(part if odd else LINK.sub(link, part) for part, odd in zip(parts, _alternating(), strict=False))


def _alternating() -> Iterator[bool]:
    while True:
        yield False
        yield True


def _index() -> Iterator[str]:
    """A table a package: each module with the first sentence of its docstring."""
    yield "# Where is what\n"
    yield "Each module with the first line of its docstring. Names that begin with an underscore are left out."
    for name, modules in rooms().items():
        yield f"\n## [{name}]({name}.md)\n"
        for module in modules:
            yield f"* [`{module.removeprefix(name + '.')}`][{module}]: {_first_line(module)}"


def _first_line(module: str) -> str:
    path = ROOT.joinpath(*module.split("."))
    file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    text = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
    return text.partition("\n")[0]
