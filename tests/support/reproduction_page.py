"""The table of docs/reproduction.md, made from the experiments: ``python -m tests.support.reproduction_page``.

Without an argument it says whether the page's table is the experiments'; ``--write`` writes it anew.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

from pipeline.config.experiment import Config
from pipeline.config.load import load
from pipeline.config.located_yaml import ConfigError
from pipeline.workflow import costs
from pipeline.workflow.plan import Plan
from tests.support.methods_page import ROOT, Row, block, table

PAGE = ROOT / "docs" / "reproduction.md"
FOLDER = ROOT / "workflow_configs" / "experiments"
PAPERS = {
    "blur": "BLUR (arXiv 2506.08164)",
    "pdu": "PDU (arXiv 2506.05314)",
    "ofmu": "OFMU (OpenReview ZDuyNJI56H)",
    "open-unlearning": "open-unlearning (docs/repro.md)",
}
GPU, MEMORY = "h100-80", 80  # GiB
OFFLOADED = "runtime.memory={gradients: bf16, optimizer: offload}"
LEAN = ["runtime.recompute_activations=true", "runtime.reference_model=offloaded", "unlearning.micro_batch=1"]


def experiments(paper: str) -> list[str]:
    """The names of a paper's experiments."""
    return sorted(path.stem for path in FOLDER.glob(f"{paper}-*.yaml"))


def rows(paper: str) -> Iterator[Row]:
    """A line for each table and figure, of which an experiment may have several."""
    yield ["table or figure", "experiment", "of it", "published numbers", "1 GPU", "8 GPUs"]
    for name in experiments(paper):
        config = load(name)
        of_it, _, what = config.experiment.title.partition(": ")
        if what.count(": "):
            raise ValueError(f"{name}: its title has more than one colon")
        hours = [gpu_hours(name, gpus) for gpus in (1, 8)]
        for each in of_it.split("; "):
            yield [each, f"`{name}`", what, published(config), *hours]


def published(config: Config) -> str:
    """How many of the experiment's models each source has numbers of."""
    ids = ["target", "retrain", *(run.id for run in config.runs)]
    found: dict[str, int] = {}
    for part in config.benchmark.published:
        if (part.model, part.split) == (config.model.name, config.experiment.split):
            source = part.source.partition(" (")[0].partition(",")[0]
            found[source] = found.get(source, 0) + sum(name in part.values for name in ids)
    texts = [f"{source}: {count} of {len(ids)} models" for source, count in found.items() if count]
    return ", ".join(texts) or "none: no source that could be had gives any"


def gpu_hours(name: str, gpus: int) -> str:
    """What an experiment costs on so many GPUs, by ``unlearn plan``: at the first layout that fits, lean if need be."""
    for more, said in (([], ""), ([OFFLOADED], ", offloaded"), ([OFFLOADED, *LEAN], ", lean")):
        try:
            plan = Plan(load(name, settings=[f"layout={{auto: {gpus}, memory_gib: {MEMORY}}}", *more]), Path("results"))
        except ConfigError:
            continue
        found = costs.costs(plan, costs.gpus()[GPU])
        return f"{sum(cost.seconds for cost in found) / 3600 * gpus:.3g} h{said}"
    return "does not fit"


def main(arguments: list[str]) -> None:
    """Compare the page's tables with the experiments, or write them."""
    page = PAGE.read_text(encoding="utf-8")
    for paper in PAPERS:
        wanted, (shown,) = table(rows(paper)), block(paper).findall(page)
        if arguments == ["--write"]:
            page = block(paper).sub(lambda _, wanted=wanted: wanted, page)  # type: ignore[misc]
        elif shown != wanted:
            sys.exit(f"{PAGE.relative_to(ROOT)}: the table of {paper} is not the experiments'")
    if arguments == ["--write"]:
        PAGE.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
