"""Write a report, ``python -m pipeline.report SPEC.yaml``, or print the table of one, ``... --print FOLDER``.

The specification is a ``pipeline.specs.ReportSpec``. Writes into its ``output``: ``table.csv``, ``table.md``,
``table.tex``, ``figures/*.svg``, ``examples/*.html``, ``evidence.json``, ``index.html`` and ``summary.json``, and the
model card ``README.md`` into every unlearned checkpoint, each in one rename. Figures and examples of an earlier report
that this one lacks are removed. Equal inputs give equal bytes, but for the times in ``summary.json``.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from megatron_ext.atomic_files import write_text
from megatron_ext.specs import read as read_spec
from megatron_ext.summary import Clock
from pipeline.benchmarks import family
from pipeline.judging.rubric import definitions
from pipeline.report import (
    costs,
    evidence,
    latex,
    meta_evaluation,
    read,
    requests,
    robustness,
    selection,
    tables,
    utility,
)
from pipeline.specs import ReportSpec

if TYPE_CHECKING:
    from pipeline.report.read import Group


def main(argv: Sequence[str] | None = None) -> None:
    """Write the report of a specification, or print the table of a folder that holds one.

    Raises:
        ValueError: an input is malformed; the message names file and key
        OSError: an input is missing, or the output cannot be written
    """
    clock = Clock()
    parser = argparse.ArgumentParser(prog="python -m pipeline.report", description=(__doc__ or "").splitlines()[0])
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("spec", nargs="?", type=Path, metavar="SPEC.yaml", help="what to report, and where to write it")
    what.add_argument("--print", dest="folder", type=Path, metavar="FOLDER", help="print the table of a written report")
    given = parser.parse_args(argv)
    if given.folder is not None:
        print(tables.as_text(given.folder))
    else:
        write(read_spec(given.spec, ReportSpec), clock)


def write(spec: ReportSpec, clock: Clock) -> None:
    """Write the report of ``spec`` into its output."""
    # Imported here, and not where they are used, so that their time counts as start-up.
    import jinja2  # noqa: F401
    from matplotlib.backends import backend_svg  # noqa: F401

    clock.mark("startup")
    groups = read.load(spec)
    files = render(spec, groups)
    texts = {spec.output / name: text for name, text in files.items()}
    if not spec.failed:  # a card is of the whole comparison
        texts.update(evidence.cards(spec, json.loads(files["evidence.json"])))
    clock.mark("work")
    for folder, ending in (("figures", "svg"), ("examples", "html")):
        (spec.output / folder).mkdir(parents=True, exist_ok=True)
        for old in (spec.output / folder).glob(f"*.{ending}"):
            if f"{folder}/{old.name}" not in files:
                old.unlink()
    for path, text in texts.items():
        write_text(path, text)
    clock.mark("write")
    figures = sum(name.endswith(".svg") for name in files)
    clock.write(spec.output, models=sum(len(group.results) for group in groups), figures=figures)


def render(spec: ReportSpec, groups: Sequence[Group]) -> dict[str, str]:
    """The report's files as text, by their path below the output."""
    from pipeline.report import curves, epochs, examples, page, radar, sweeps, trade_offs

    attacked, later_requests, by_epoch = read.attacked(spec), read.later_requests(spec), read.by_epoch(spec)
    ends = {entry.model_id for entry in spec.entries}  # a run's last epoch may be what it ended in
    saved = [group for group in by_epoch if group.results[0].entry.model_id not in ends]
    judges = read.judges(groups)
    benchmark = family(spec.options.family)
    metrics = (*utility.catalogue(spec), *(definitions(judges) if judges else ()))
    chosen = selection.choices(spec, groups, metrics)
    groups, attacked, later_requests = (selection.marked(each, chosen) for each in (groups, attacked, later_requests))
    after_requests = requests.tables(groups, later_requests, metrics)
    every = [*groups, *later_requests]
    changes = robustness.tables(spec, every, attacked, metrics)
    drawn = [
        *trade_offs.draw(groups, metrics, benchmark.trade_offs(spec.options)),
        *radar.draw(groups, metrics),
        *sweeps.draw(spec, groups, metrics),
        *curves.draw(groups, attacked),
        *epochs.draw(groups, by_epoch, metrics),
        *requests.draw(groups, after_requests),
    ]
    repeats = read.repeats(spec)
    apart = meta_evaluation.table(spec, [*groups, *attacked, *repeats], metrics)
    shown = evidence.document(spec, groups, attacked, later_requests, metrics)
    content = page.Content(
        groups=groups,
        attacked=attacked,
        later_requests=later_requests,
        saved=saved,
        metrics=metrics,
        figures=drawn,
        costs=costs.of(spec, [*groups, *later_requests]),
        timings=read.timings(spec, [*groups, *attacked, *later_requests, *saved, *repeats]),
        changes=changes,
        apart=apart,
        requests=after_requests,
        evidence=shown,
        examples=examples.collect(spec, every),
    )
    ratios = robustness.with_ratios(spec, every, attacked, metrics)
    return {
        "table.csv": tables.as_csv(spec, [*groups, *ratios, *later_requests, *by_epoch, *repeats], metrics),
        "table.md": tables.as_markdown(spec, groups, metrics)
        + robustness.as_markdown(changes)
        + meta_evaluation.as_markdown(apart)
        + requests.as_markdown(spec, after_requests),
        "table.tex": latex.render(spec, groups, metrics),
        **{f"figures/{figure.name}.svg": figure.svg for figure in drawn},
        "evidence.json": json.dumps(shown, indent=2, ensure_ascii=False, allow_nan=False) + "\n",
        **page.render(spec, content),
    }


if __name__ == "__main__":
    try:
        main()
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")
