"""Published numbers: every source's beside the model, split and run that its own form is."""

from __future__ import annotations

from collections.abc import Sequence

from pipeline.benchmarks.base import Metric
from pipeline.report.read import Group
from pipeline.specs import Published, ReportSpec


def numbers(spec: ReportSpec, group: Group, key: str) -> list[Published]:
    """What sources publish for a metric of this model, split and run, in the specification's order.

    A variant has only what names it; an attacked model, one after further requests and an epoch have none.

    Args:
        spec: What to report.
        group: The row.
        key: The metric's key.

    Raises:
        ValueError: A source has several numbers for it.
    """
    if group.attack is not None or group.request > 1 or group.epoch:
        return []
    run = group.method if group.variant is None else f"{group.method}-{group.variant}"
    found = [
        p
        for p in spec.published
        if (p.method, p.metric) == (run, key)
        and p.model in (None, spec.published_of or spec.model)
        and p.split in (None, spec.split)
    ]
    sources = [p.source for p in found]
    if len(set(sources)) < len(sources):
        raise ValueError(f"published: a source has several numbers for {run!r}, metric {key!r}: {', '.join(sources)}")
    return found


def check(spec: ReportSpec, metrics: Sequence[Metric]) -> None:
    """Refuse published numbers of metrics that the family does not have.

    Args:
        spec: What to report.
        metrics: Every metric that there may be a value of.

    Raises:
        ValueError: A number names no metric.
    """
    known = {metric.key for metric in metrics}
    for number in spec.published:
        if number.metric not in known:
            raise ValueError(f"published: unknown metric {number.metric!r}; allowed: {', '.join(sorted(known))}")


def sentence(spec: ReportSpec, groups: Sequence[Group]) -> str:
    """What must be known of the published numbers: what may be compared where they are of another model, and of which
    unlearned models no source gives any; empty where there is nothing to say."""
    if not spec.published:
        return ""
    said = []
    if spec.published_of is not None:
        said.append(
            f"They are of {spec.published_of}, not of {spec.model}: what may be compared is how the methods of one "
            "table stand to each other and to its own target and retrain; a value of theirs with one of ours may not."
        )
    named = {number.metric: None for number in spec.published}
    unlearned = [group for group in groups if group.kind == "unlearned"]
    titles = [group.title for group in unlearned if not any(numbers(spec, group, key) for key in named)]
    if titles:
        said.append(f"No source gives numbers of {', '.join(titles)} here.")
    return " ".join(said)
