"""TOFU (Maini et al. 2024, arXiv 2401.06121): what a model is asked, and when it counts as destroyed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pipeline.benchmarks import degenerate_answers, privacy
from pipeline.benchmarks.base import Cost, Example, Metric, Requests, of_set
from pipeline.benchmarks.privacy import HOLDOUT
from pipeline.benchmarks.questions import instance_of
from pipeline.benchmarks.requests import Instance, requests_of
from pipeline.benchmarks.tofu.catalogue import ORIGINAL_LENGTH, SETS, catalogue, has_paraphrase
from pipeline.benchmarks.tofu.metrics import ORIGINAL_GENERATION, UTILITY, compute
from pipeline.benchmarks.tofu.options import TofuOptions
from pipeline.data.errors import DataError
from pipeline.data.json_files import numbered_rows

if TYPE_CHECKING:
    from pipeline.data.tokenizer import Tokenizer

NO_UTILITY = 1e-3  # a model utility below it is printed as 0 in published tables


class Tofu:
    """TOFU's questions.

    True, paraphrased and perturbed answers of four sets are scored, and an answer to every question is generated. Where
    memorisation or membership is asked for, answers of the forget and the holdout set are scored token by token.
    """

    options = TofuOptions

    def metrics(self, options: TofuOptions) -> tuple[Metric, ...]:
        return catalogue(options)

    def trade_offs(self, options: TofuOptions) -> tuple[tuple[str, str], ...]:
        return ("model_utility", "forget_quality"), ("model_utility", "forget_probability")

    def sets(self, options: TofuOptions) -> tuple[str, ...]:
        return (*SETS, *([HOLDOUT] if options.needs_holdout else ()), *options.request_sets)

    def judged(self, options: TofuOptions) -> Mapping[Literal["forget", "retain"], str]:
        return {"forget": "forget", "retain": "retain"}

    def to_forget(self, options: TofuOptions) -> frozenset[str]:
        return frozenset({"forget", *options.request_sets})

    def cost(self, options: TofuOptions, forget_rows: int) -> Cost:
        """A row has its answer and five perturbed ones; of the forget and the retain set, of which at most 400 rows
        are scored, a paraphrase too; all requests together are at most ten times the first. Real authors and world
        facts are 217 rows. There are as many holdout rows as forget rows. A gradient takes as long as three scores."""
        later = 9 * forget_rows if options.requests > 1 else 0
        scored = 7 * (forget_rows + later + 400) + 6 * 217
        if options.needs_holdout:
            scored += forget_rows
        if "gradnorm" in options.membership:
            scored += 2 * forget_rows * (1 + 3)
        drawn = options.leak.samples * forget_rows if options.leak else 0
        return Cost(scored, forget_rows + later + 400 + 217 + drawn, options.max_new_tokens)

    def requests(self, data: Path, options: TofuOptions, tokenizer: Tokenizer, vocabulary: int) -> Requests:
        return requests_of(self.instances(data, options, tokenizer), data, vocabulary)

    def instances(self, data: Path, options: TofuOptions, tokenizer: Tokenizer) -> list[Instance]:
        """All rows of ``data/evaluation/<set>.jsonl``.

        Every target follows the original question, those of paraphrased answers included.
        """
        files = {name: Path(data) / "evaluation" / f"{name}.jsonl" for name in self.sets(options)}
        return [instance for name, file in files.items() for instance in _read(name, file, options, tokenizer)]

    def compute_metrics(
        self, examples: Sequence[Example], options: TofuOptions, retain_examples: Sequence[Example] | None = None
    ) -> dict[str, float]:
        if options.needs_retrain and retain_examples is None:
            raise DataError(f"no evaluation of retrain is given: {options.needs_retrain}")
        return compute(examples, options, retain_examples)

    def collapse(self, examples: Sequence[Example], options: TofuOptions, metrics: Mapping[str, float]) -> list[str]:
        """As ``Family.collapse``: most answers to retain questions are empty or repeat themselves, or utility is 0."""
        reasons = degenerate_answers.collapse(metrics, len(of_set(examples, "retain")))
        if metrics["model_utility"] < NO_UTILITY:
            worst = min(UTILITY, key=lambda key: metrics[key])
            reasons.append(f"model utility is {metrics['model_utility']:.3g}: {worst} is {metrics[worst]:.3g}")
        return reasons


def _read(name: str, path: Path, options: TofuOptions, tokenizer: Tokenizer) -> list[Instance]:
    """The instances of the set ``name`` in the file ``path``; raises ``DataError`` that names a line."""
    found = [_instance(name, row, place, options, tokenizer) for place, row in numbered_rows(path)]
    if not found:
        raise DataError(f"{path}: no rows")
    return found


def _instance(name: str, row: Mapping[str, Any], place: str, options: TofuOptions, tokenizer: Tokenizer) -> Instance:
    asked = name != HOLDOUT
    cuts = {ORIGINAL_GENERATION: max(0, ORIGINAL_LENGTH - len(row.get("prompt_ids", ())))} if asked else {}
    return instance_of(
        name,
        row,
        place,
        needed=_needed(name),
        options=options,
        tokenizer=tokenizer,
        attacked=name in privacy.SETS,
        tokenwise=options.tokenwise(name),
        new_tokens=options.max_new_tokens if asked else None,
        cuts=cuts,
        leaks=name == "forget",
    )


def _needed(name: str) -> set[str]:
    """Targets that every row of a set must have."""
    if name == HOLDOUT:
        return {"answer"}
    return {"answer", "perturbed_0"} | ({"paraphrased"} if has_paraphrase(name) else set())


FAMILY = Tofu()
