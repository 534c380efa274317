"""Change the code at one point, run the tests that should notice, and count who did: ``make mutants``.

Each mutant is a copy of the tree in a temporary folder with one operator, constant, comparison, condition or order of
arguments changed. Tests run in a process that is forked with torch imported, fast ones first.
"""

from __future__ import annotations

import argparse
import ast
import copy
import multiprocessing
import random
import resource
import shutil
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
TREE = ("megatron_ext", "pipeline", "tests", "workflow_configs", "docs", "pyproject.toml")
WANTED = 0.95
CPU_SECONDS, SECONDS = 300, 1800  # of one run of tests; a mutant may never end
EXT, PIPELINE = "tests/megatron_ext", "tests/pipeline"
PAGE = "tests/integration/test_methods_page.py"
# Files that are changed, by subject, and the tests that should notice, the quickest first.
TARGETS: dict[str, tuple[list[str], list[str]]] = {
    "losses": (
        ["megatron_ext/losses/*.py"],
        [f"{EXT}/losses/test_losses.py", f"{EXT}/losses/test_rmu.py", PAGE, f"{EXT}/losses/test_methods.py"],
    ),
    "updates": (
        ["megatron_ext/updates/*.py"],
        [
            *(f"{EXT}/updates/test_updates.py", f"{EXT}/training/test_step.py", PAGE),
            *(f"{EXT}/losses/test_methods.py", f"{EXT}/updates/test_rules_runs.py"),
        ],
    ),
    "sampling": (
        ["megatron_ext/data/sampling.py", "megatron_ext/training/topics.py", "megatron_ext/training/schedule.py"],
        [
            f"{EXT}/data",
            f"{EXT}/training/test_schedule.py",
            f"{EXT}/training/test_topics.py",
            f"{EXT}/steps/test_unlearn.py",
            f"{EXT}/losses/test_rmu.py",
        ],
    ),
    "gradient space": (
        ["megatron_ext/training/gradients.py", "megatron_ext/training/step.py"],
        [
            *(f"{EXT}/training/test_{name}.py" for name in ("step", "vector_kernels", "gradients", "trainer")),
            f"{EXT}/training/test_step_layouts.py",
            f"{EXT}/losses/test_methods.py",  # a wrong number that is the same at every layout
        ],
    ),
    "metrics": (
        ["pipeline/metrics/*.py"],
        [f"{PIPELINE}/metrics", f"{PIPELINE}/benchmarks/tofu", f"{PIPELINE}/benchmarks/muse"],
    ),
    "label boundaries": (
        ["megatron_ext/data/sequences.py", "megatron_ext/data/collate.py", "pipeline/data/tokenise.py"],
        [
            f"{EXT}/data",
            f"{PIPELINE}/data/test_tokenise.py",
            f"{EXT}/losses/test_losses.py",
            f"{EXT}/training/test_trainer.py",
        ],
    ),
}
SWAPPED: dict[type, type] = {
    **{ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult},
    **{ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq},
    **{ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In, ast.And: ast.Or, ast.Or: ast.And},
}
NAMES = {"min": "max", "max": "min", "any": "all", "all": "any"}


@dataclass(frozen=True)
class Mutant:
    """One change of one file: the bytes from ``begin`` to ``end`` become ``new``."""

    subject: str
    file: str
    line: int
    begin: int
    end: int
    old: str
    new: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.old}  ->  {self.new}"


def changes(node: ast.AST) -> Iterator[Any]:
    """The node with one thing changed, in each way that there is."""
    made: Any = copy.deepcopy(node)
    if isinstance(node, ast.BinOp | ast.BoolOp) and type(node.op) in SWAPPED:
        made.op = SWAPPED[type(node.op)]()
        yield made
    elif isinstance(node, ast.Compare) and type(node.ops[0]) in SWAPPED:
        made.ops[0] = SWAPPED[type(node.ops[0])]()
        yield made
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not | ast.USub):
        yield made.operand
    elif isinstance(node, ast.Constant) and isinstance(node.value, int | float):
        flipped = [not node.value] if isinstance(node.value, bool) else [node.value + 1, node.value - 1]
        yield from (ast.Constant(value) for value in flipped)
    elif isinstance(node, ast.Name) and node.id in NAMES:
        yield ast.Name(NAMES[node.id])
    elif isinstance(node, ast.Call) and len(node.args) > 1 and not isinstance(node.args[0], ast.Starred):
        if isinstance(node.func, ast.Name) and node.func.id in ("min", "max"):
            return  # the same in either order
        made.args[:2] = reversed(made.args[:2])
        yield made
    elif isinstance(node, ast.IfExp):
        made.body, made.orelse = made.orelse, made.body
        yield made


def inner(node: ast.AST) -> Iterator[ast.AST]:
    """What computes: no annotation, decorator or message, and no loop that only raises one.

    Nor a zip's ``strict``, which decides nothing where lengths are equal. The number behind a minus sign is left as it
    is, too: it marks what is no row, and any other would do.
    """
    if isinstance(node, ast.keyword) and node.arg == "strict":
        return
    if isinstance(node, ast.For) and any(isinstance(statement, ast.Raise) for statement in node.body):
        return
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub) and isinstance(node.operand, ast.Constant):
        return
    for name, value in ast.iter_fields(node):
        if name in ("annotation", "returns", "decorator_list") or isinstance(node, ast.Raise | ast.JoinedStr):
            continue
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, ast.AST):
                yield child
                yield from inner(child)


def mutants(subject: str, file: Path) -> Iterator[Mutant]:
    text = file.read_bytes()
    starts = [0]
    for line in text.splitlines(keepends=True):
        starts.append(starts[-1] + len(line))
    for node in inner(ast.parse(text)):
        for changed in changes(node) if isinstance(node, ast.expr) else ():
            begin, end = (starts[row - 1] + column for row, column in _span(node))
            old, new = ast.unparse(node), ast.unparse(changed)
            if old != new:  # as f(x, x) is in either order
                yield Mutant(subject, str(file.relative_to(ROOT)), node.lineno, begin, end, old, f"({new})")


def _span(node: ast.expr) -> list[tuple[int, int]]:
    assert node.end_lineno is not None and node.end_col_offset is not None
    return [(node.lineno, node.col_offset), (node.end_lineno, node.end_col_offset)]


def run_tests(folder: str, tests: list[str], log: str) -> None:
    """Run them in ``folder``, of whose code this process has imported nothing, and exit with pytest's status."""
    import os

    import pytest

    resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(file, 1)
    os.dup2(file, 2)
    os.chdir(folder)
    for name in [name for name in sys.modules if name.partition(".")[0] == "tests"]:
        del sys.modules[name]
    sys.path[:] = [folder, *(path for path in sys.path if path not in ("", str(ROOT)))]
    sys.exit(pytest.main(["-x", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", *tests]))


def survives(mutant: Mutant | None, tests: list[str], scratch: Path) -> bool:
    """Whether all tests pass, those that take seconds first; without a mutant, of the tree as it is."""
    context = multiprocessing.get_context("forkserver")
    folder = Path(tempfile.mkdtemp(dir=scratch))
    for name in TREE:
        place = shutil.copytree if (ROOT / name).is_dir() else shutil.copyfile
        place(ROOT / name, folder / name)
    if mutant is not None:
        text = (folder / mutant.file).read_bytes()
        (folder / mutant.file).write_bytes(text[: mutant.begin] + mutant.new.encode() + text[mutant.end :])
    passed = True
    for marker in ("not slow", "slow"):
        options = [*tests, "-m", marker]
        process = context.Process(target=run_tests, args=(str(folder), options, str(folder / "log")))
        process.start()
        process.join(SECONDS)
        if process.exitcode is None:
            process.kill()
            process.join()
        passed = passed and process.exitcode in (0, 5)  # 5: none of these tests has that marker
        if not passed:
            break
    if mutant is None and not passed:
        print((folder / "log").read_text()[-3000:])
    shutil.rmtree(folder, ignore_errors=True)
    return passed


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--count", type=int, default=20, help="mutants of each subject")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--subjects", nargs="+", choices=TARGETS, default=list(TARGETS))
    options = parser.parse_args(argv)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch", "transformers", "megatron.core.optimizer", "hypothesis", "scipy.stats"])
    killed, chosen = 0, []
    with tempfile.TemporaryDirectory() as name, ThreadPoolExecutor(options.jobs) as pool:
        for subject in options.subjects:
            patterns, tests = TARGETS[subject]
            assert survives(None, tests, Path(name)), f"{subject}: the tests fail without a mutant"
            found = [m for pattern in patterns for file in sorted(ROOT.glob(pattern)) for m in mutants(subject, file)]
            sample = random.Random(f"{options.seed} {subject}").sample(found, min(options.count, len(found)))
            results = pool.map(lambda mutant, tests=tests: survives(mutant, tests, Path(name)), sample)
            for mutant, survived in zip(sample, results, strict=True):
                print(f"{'SURVIVED' if survived else 'killed'}  {mutant}", flush=True)
                killed += not survived
            chosen += sample
    print(f"{killed} of {len(chosen)} mutants killed, {killed / len(chosen):.0%}; wanted: {WANTED:.0%}")
    return int(killed < WANTED * len(chosen))


if __name__ == "__main__":
    sys.exit(main())
