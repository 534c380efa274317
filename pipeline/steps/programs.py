"""Which source files a step runs, so that changing a step's code reruns that step and what follows, and nothing else.

The imports are read from the source text (those inside functions too), never executed. What specification modules
decide is not counted: it is in the specification itself.
"""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from megatron_ext.specs import StepSpec
from pipeline.specs import EvaluateSpec, PrepareSpec, ReportSpec

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("pipeline", "megatron_ext")
PROGRAMS = {
    "prepare": "pipeline.steps.prepare",
    "fetch": "pipeline.steps.fetch_model",
    "fetch_data": "pipeline.steps.fetch_data",
    "fetch_datasets": "pipeline.steps.fetch_data",
    "train": "megatron_ext.steps.train",
    "quantise": "megatron_ext.steps.quantise",
    "alternatives": "megatron_ext.steps.alternatives",
    "own_answers": "pipeline.steps.own_answers",
    "reference": "megatron_ext.steps.reference",
    "unlearn": "megatron_ext.steps.unlearn",
    "evaluate": "pipeline.steps.evaluate",
    "judge": "pipeline.steps.judge",
    "report": "pipeline.report.__main__",
    "release": "pipeline.report.release",
}
# Packages whose files are found at run time: a step runs the ones that its specification names.
PLUG_INS = ("megatron_ext.losses", "megatron_ext.updates", "pipeline.benchmarks")
SPECIFICATIONS = (
    "megatron_ext.schema",
    "megatron_ext.config",
    "megatron_ext.config.quantisation",
    "megatron_ext.config.selection",
    "megatron_ext.specs",
    "pipeline.specs",
    "pipeline.benchmarks.evaluated_model",
    "pipeline.data.settings",
    "pipeline.judging.settings",
)


def program(spec: StepSpec) -> str:
    """The module of a specification's program."""
    return PROGRAMS[spec.program]


def source_files(spec: StepSpec) -> list[Path]:
    """Every file of this project that the step of ``spec`` runs or reads as a template, sorted."""
    return sorted(_closure(_modules(spec)))


def source_digest(spec: StepSpec) -> str:
    """The SHA-256 of the names and contents of what ``source_files`` lists."""
    return _digest(_modules(spec))


@cache
def _digest(modules: tuple[str, ...]) -> str:
    total = hashlib.sha256()
    for path in sorted(_closure(modules)):
        total.update(f"{path.relative_to(ROOT).as_posix()} {hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    return total.hexdigest()


def _modules(spec: StepSpec) -> tuple[str, ...]:
    """What a step's program imports first: its own module, and the plug-ins that its specification names."""
    named = {type(value).__module__ for value in (getattr(spec, name) for name in type(spec).model_fields)}
    modules = [program(spec), *(name for name in named if name.startswith(PLUG_INS))]
    if isinstance(spec, EvaluateSpec | ReportSpec):
        modules.append(f"pipeline.benchmarks.{spec.options.family}.evaluate")
    if isinstance(spec, PrepareSpec):
        modules.append(f"pipeline.benchmarks.{spec.family}.data")
    return tuple(sorted(modules))


@cache
def _closure(modules: tuple[str, ...]) -> frozenset[Path]:
    found: dict[str, Path] = {}
    waiting = list(modules)
    while waiting:
        name = waiting.pop()
        path = _file(name)
        if path is None or name in found or name in SPECIFICATIONS:
            continue
        found[name] = path
        waiting += [name.rpartition(".")[0], *_imports(name, path)]
    data = {
        file
        for path in found.values()
        if path.name == "__init__.py"
        for file in path.parent.iterdir()
        if file.is_file() and file.suffix in (".j2", ".css", ".js")
    }
    return frozenset(found.values()) | data


def _file(name: str) -> Path | None:
    if name.split(".")[0] not in PACKAGES:
        return None
    base = ROOT.joinpath(*name.split("."))
    candidates = (base.with_suffix(".py"), base / "__init__.py")
    return next((path for path in candidates if path.is_file()), None)


@cache
def _imports(name: str, path: Path) -> tuple[str, ...]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    names: list[str] = []
    for node in _executed(tree):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            source = ".".join([*above, *([node.module] if node.module else [])])
            names += [source, *(f"{source}.{alias.name}" for alias in node.names)]
    if path.name == "__init__.py" and name not in PLUG_INS and "pkgutil" in names:
        names += [f"{name}.{file.stem}" for file in sorted(path.parent.glob("*.py")) if file != path]
    return tuple(names)


def _executed(node: ast.AST) -> Iterator[ast.AST]:
    """All nodes below ``node`` but those that only a type checker sees."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and isinstance(child.test, ast.Name) and child.test.id == "TYPE_CHECKING":
            for other in child.orelse:
                yield other
                yield from _executed(other)
            continue
        yield child
        yield from _executed(child)
