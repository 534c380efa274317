"""No file of the two packages is long, and no function; no error of types is ignored without a reason."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FILE, FUNCTION = 300, 60  # lines; of a function without its docstring
FILES = sorted(path for package in ("pipeline", "megatron_ext") for path in (ROOT / package).rglob("*.py"))


def functions(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """Every function, and how many lines it has without its docstring."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno is not None
            docstring = (ast.get_docstring(node, clean=False) or "").count("\n") + bool(ast.get_docstring(node))
            yield node.name, node.end_lineno - node.lineno + 1 - docstring


def test_no_file_and_no_function_is_long() -> None:
    assert len(FILES) > 200
    long = []
    for path in FILES:
        name, text = path.relative_to(ROOT).as_posix(), path.read_text(encoding="utf-8")
        lines = text.count("\n")
        if lines > FILE:
            long.append(f"{name}: {lines} lines; at most {FILE}")
        for function, count in functions(ast.parse(text)):
            if count > FUNCTION:
                long.append(f"{name}: {function}: {count} lines; at most {FUNCTION}")
    assert not long, "\n".join(long)


def test_a_long_function_is_seen() -> None:
    body = "\n".join(f"    x = {i}" for i in range(FUNCTION))
    found = dict(functions(ast.parse(f'def f():\n    """One.\n\n    More.\n    """\n{body}\ndef g():\n    pass\n')))
    assert found == {"f": FUNCTION + 1, "g": 2}


def test_what_mypy_is_told_to_ignore_has_its_reason() -> None:
    bare = re.compile(r"# type: ignore(?!\[[a-z-]+(, [a-z-]+)*\] {1,2}# \w)")
    found = []
    for path in FILES:
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            if bare.search(line):
                found.append(f"{path.relative_to(ROOT)}:{number}: {line.strip()}")
    assert not found, "\n".join(found)
