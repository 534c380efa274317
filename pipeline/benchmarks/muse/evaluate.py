"""MUSE (Shi et al. 2024, arXiv 2407.06460): what a model is asked, and when it counts as destroyed.

VerbMem continues the starts of forget texts, KnowMem answers questions, and PrivLeak scores whole texts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pipeline.benchmarks import degenerate_answers
from pipeline.benchmarks.base import LM, Cost, Example, Metric, Requests, of_set
from pipeline.benchmarks.muse.catalogue import KNOWMEM, PRIVLEAK_SETS, VERBMEM, catalogue
from pipeline.benchmarks.muse.metrics import compute
from pipeline.benchmarks.muse.options import MuseOptions
from pipeline.benchmarks.muse.requests import instance_of, read, without_unused
from pipeline.benchmarks.requests import requests_of
from pipeline.data.errors import DataError

if TYPE_CHECKING:
    from pipeline.data.tokenizer import Tokenizer

NO_UTILITY = 1e-3  # a retain KnowMem below it is printed as 0 in a table


class Muse:
    """Continues the starts of forget texts, answers questions after answered ones, and scores texts token by token."""

    options = MuseOptions

    def metrics(self, options: MuseOptions) -> tuple[Metric, ...]:
        return catalogue(options)

    def trade_offs(self, options: MuseOptions) -> tuple[tuple[str, str], ...]:
        return ("knowmem_retain_rouge", "knowmem_forget_rouge"), ("knowmem_retain_rouge", "verbmem_rouge")

    def sets(self, options: MuseOptions) -> tuple[str, ...]:
        return (VERBMEM, *KNOWMEM, *(PRIVLEAK_SETS if options.needs_holdout else ()), *options.request_sets)

    def judged(self, options: MuseOptions) -> Mapping[Literal["forget", "retain"], str]:
        return {"forget": "knowmem_forget", "retain": "knowmem_retain"}

    def to_forget(self, options: MuseOptions) -> frozenset[str]:
        return frozenset({VERBMEM, "knowmem_forget", *options.request_sets})

    def cost(self, options: MuseOptions, forget_rows: int) -> Cost:
        """MUSE has 100 rows of each kind; a smaller benchmark fewer. A gradient takes as long as three scores."""
        rows = min(100, forget_rows)
        continued = rows * options.requests
        scored = continued * options.memorisation + 2 * rows * options.needs_holdout
        if "gradnorm" in options.membership:
            scored += 2 * rows * (1 + 3)
        drawn = options.leak.samples * rows if options.leak else 0
        return Cost(scored, continued + 2 * rows + drawn, max(options.verbmem_new_tokens, options.knowmem_new_tokens))

    def requests(self, data: Path, options: MuseOptions, tokenizer: Tokenizer, vocabulary: int) -> Requests:
        files = {name: Path(data) / "evaluation" / f"{name}.jsonl" for name in self.sets(options)}
        rows = {name: read(name, file) for name, file in files.items()}

        def ask(model: LM) -> list[dict[str, Any]]:
            instances = [
                instance_of(name, row, f"{files[name]}, line {number}", options, tokenizer, model.context)
                for name, some in rows.items()
                for number, row in enumerate(some, 1)
            ]
            examples = requests_of(instances, Path(data), vocabulary)(model)
            return [without_unused(example, options) for example in examples]

        return ask

    def compute_metrics(
        self, examples: Sequence[Example], options: MuseOptions, retain_examples: Sequence[Example] | None = None
    ) -> dict[str, float]:
        if options.needs_retrain and retain_examples is None:
            raise DataError(f"no evaluation of retrain is given: {options.needs_retrain}")
        return compute(examples, options, retain_examples)

    def collapse(self, examples: Sequence[Example], options: MuseOptions, metrics: Mapping[str, float]) -> list[str]:
        """As ``Family.collapse``: most answers to retain questions are empty or repeat themselves, or KnowMem is 0."""
        reasons = degenerate_answers.collapse(metrics, len(of_set(examples, "knowmem_retain")))
        if metrics["knowmem_retain_rouge"] < NO_UTILITY:
            reasons.append(f"KnowMem of the retain set is {metrics['knowmem_retain_rouge']:.3g}")
        return reasons


FAMILY = Muse()
