"""Tables, figures and one self-contained HTML page from evaluations and step logs: ``python -m pipeline.report``."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from megatron_ext.atomic_files import write_text
from megatron_ext.summary import Clock

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> None:
    """Write the report of ``SPEC.yaml`` into its ``output``, or print the table of a folder that holds one.

    Writes ``table.csv``, ``table.md``, ``figures/*.svg``, ``index.html`` and ``summary.json``, each atomically; figures
    of an earlier report that this one lacks are removed. Equal inputs give equal bytes (``summary.json`` holds times).
    Raises ``ValueError`` or ``OSError`` that names file and key where an input is missing or malformed.
    """
    clock = Clock()
    parser = argparse.ArgumentParser(prog="python -m pipeline.report", description=__doc__)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("spec", nargs="?", type=Path, metavar="SPEC.yaml", help="what to report, and where to write it")
    what.add_argument("--print", dest="folder", type=Path, metavar="FOLDER", help="print the table of a written report")
    given = parser.parse_args(argv)
    if given.folder is not None:
        from pipeline.report.tables import as_text

        print(as_text(given.folder))
    else:
        write(given.spec, clock)


def write(path: Path, clock: Clock) -> None:
    """The report of the specification at ``path``."""
    # jinja2 and matplotlib are imported here, too, so that they count as start-up.
    import jinja2  # noqa: F401
    from matplotlib.backends import backend_svg  # noqa: F401

    from megatron_ext.specs import read
    from pipeline.benchmarks import family
    from pipeline.judging.rubric import definitions
    from pipeline.report import figures, page, robustness, tables
    from pipeline.report import read as results
    from pipeline.report import requests as unlearning_requests
    from pipeline.specs import ReportSpec

    spec: ReportSpec = read(path, ReportSpec)
    clock.mark("startup")

    groups, attacked, later_requests = results.load(spec), results.attacked(spec), results.later_requests(spec)
    judges = results.judges(groups)
    benchmark = family(spec.options.family)
    metrics = (*benchmark.metrics(spec.options), *(definitions(judges) if judges else ()))
    requests = unlearning_requests.tables(groups, later_requests, metrics)
    drawn = [
        *figures.draw(groups, metrics, benchmark.trade_offs(spec.options)),
        *unlearning_requests.draw(groups, requests),
    ]
    stages = results.stages(spec, [*groups, *attacked, *later_requests])
    ratios = robustness.with_ratios(spec, groups, attacked, metrics)
    changes = robustness.tables(spec, groups, attacked, metrics)
    files = {
        "table.csv": tables.as_csv(spec, [*groups, *ratios, *later_requests], metrics),
        "table.md": tables.as_markdown(spec, groups, metrics)
        + robustness.as_markdown(changes)
        + unlearning_requests.as_markdown(spec, requests),
        **{f"figures/{figure.name}.svg": figure.svg for figure in drawn},
        "index.html": page.render(
            spec, groups, metrics, drawn, stages, [*attacked, *later_requests], changes, requests
        ),
    }
    clock.mark("work")

    (spec.output / "figures").mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        write_text(spec.output / name, text)
    for old in (spec.output / "figures").glob("*.svg"):
        if f"figures/{old.name}" not in files:
            old.unlink()
    clock.mark("write")
    clock.write(spec.output, models=sum(len(group.results) for group in groups), figures=len(drawn))
