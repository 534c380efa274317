"""An evaluation of ours as open-unlearning's logs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from megatron_ext.atomic_files import write_json
from pipeline.benchmarks import AnyOptions, Options
from pipeline.benchmarks.attacks import Attack
from pipeline.benchmarks.base import Example, avg_loss, generation, of_set, tokenwise
from pipeline.benchmarks.muse.metrics import REST
from pipeline.benchmarks.muse.metrics import attack_score as muse_score
from pipeline.benchmarks.muse.options import MuseOptions
from pipeline.benchmarks.privacy import PrivacyOptions
from pipeline.benchmarks.privacy import attack_score as tofu_score
from pipeline.benchmarks.records import EVALUATION, EvaluationRecord, verified_examples
from pipeline.data.errors import DataError
from pipeline.exchange.names import FAMILIES, MUSE_ROUGE, NORMALISED, TOFU_SETS
from pipeline.metrics.aggregate import mean
from pipeline.metrics.membership import auc
from pipeline.metrics.memorisation import exact_memorisation, extraction_strength
from pipeline.metrics.probability import normalised_probability, probability
from pipeline.metrics.text import rouge_scores
from pipeline.metrics.truth_ratio import truth_ratio

Log = dict[str, Any]


def write_logs(evaluation: Path, output: Path) -> list[Path]:
    """Write an evaluation as ``TOFU_EVAL.json`` or ``MUSE_EVAL.json``, and its summary beside it.

    Args:
        evaluation: folder with ``evaluation.json`` and ``examples.jsonl``
        output: folder for both files

    Returns:
        the two files

    Raises:
        DataError: it is no evaluation of TOFU or MUSE, or an example lacks what a log holds
    """
    record = EvaluationRecord.read(evaluation / EVALUATION)
    try:
        options: Options = TypeAdapter(AnyOptions).validate_python(record.settings.options)
    except ValidationError as error:
        found_wrong = error.errors()[0]
        where = ".".join(map(str, found_wrong["loc"]))
        raise DataError(f"{evaluation / EVALUATION}: settings.options: {where}: {found_wrong['msg']}") from None
    if options.family not in FAMILIES:
        raise DataError(f"{evaluation}: of {options.family!r}; open-unlearning has logs of {', '.join(FAMILIES)}")
    logs = FAMILIES[options.family]
    examples = verified_examples(evaluation, record)
    found = _tofu(examples) if options.family == "tofu" else _muse(examples)
    if isinstance(options, PrivacyOptions):
        found |= _privacy(examples, options)
    for ours, theirs in logs.metrics.items():
        value = record.metrics.get(ours)
        if value is not None:
            found[theirs] = {**found.get(theirs, {}), "agg_value": value}
    if options.family == "tofu":
        found.setdefault("forget_quality", {"agg_value": None})  # as without retrain's logs
    summary = {
        name: log["agg_value"]
        for name, log in found.items()
        if name in logs.summarised and log["agg_value"] is not None
    }
    files = []
    for kind, content in (("EVAL", found), ("SUMMARY", summary)):
        files.append(output / f"{logs.evaluator}_{kind}.json")
        write_json(files[-1], dict(sorted(content.items())))
    return files


def _by_index(examples: Iterable[Example], value: Callable[[Example], Mapping[str, Any]]) -> dict[str, Any]:
    return {str(example["index"]): value(example) for example in examples}


def _tofu(examples: Sequence[Example]) -> Log:
    log: Log = {}
    for name, short in TOFU_SETS.items():
        rows = of_set(examples, name)
        log |= {
            f"{short}_Q_A_Prob": {"value_by_index": _by_index(rows, lambda row: _probability(row, "answer"))},
            f"{short}_Q_A_PERT_Prob": _averaged(_by_index(rows, _perturbed)),
            f"{short}_Q_A_ROUGE": {"value_by_index": _by_index(rows, lambda row: _rouge(row, "question", "answer"))},
        }
        correct = "answer"
        if name in NORMALISED:
            shares = _by_index(rows, lambda row: {"prob": normalised_probability(avg_loss(row, "answer"), _wrong(row))})
            log[f"{short}_Q_A_Prob_normalised"] = {"value_by_index": shares}
        else:
            correct = "paraphrased"
            log[f"{short}_Q_A_PARA_Prob"] = _averaged(_by_index(rows, lambda row: _probability(row, "paraphrased")))
        ratio = "forget_truth_ratio" if name == "forget" else f"{short}_Truth_Ratio"
        log[ratio] = {"value_by_index": {str(row["index"]): _ratio(row, correct) for row in rows}}
    return log


def _wrong(example: Example) -> list[float]:
    count = sum(key.startswith("perturbed_") for key in example["scores"])
    return [avg_loss(example, f"perturbed_{i}") for i in range(count)]


def _probability(example: Example, target: str) -> dict[str, float]:
    loss = avg_loss(example, target)
    return {"prob": probability(loss), "avg_loss": loss}


def _perturbed(example: Example) -> dict[str, Any]:
    """Lists, but where there is one wrong answer only."""
    losses = _wrong(example)
    if len(losses) == 1:
        return {"prob": probability(losses[0]), "avg_loss": losses[0]}
    return {"prob": [probability(loss) for loss in losses], "avg_loss": losses}


def _ratio(example: Example, correct: str) -> dict[str, float]:
    return {"score": truth_ratio(avg_loss(example, correct), _wrong(example))}


def _averaged(values: dict[str, Any]) -> Log:
    found = [mean(p) if isinstance(p := value["prob"], list) else p for value in values.values()]
    return {"agg_value": mean(found), "value_by_index": values}


def _rouge(example: Example, asked: str, answer: str) -> dict[str, Any]:
    said = generation(example)
    scores = rouge_scores(example[answer], said)
    return {**scores, "input": example[asked], "ground_truth": example[answer], "generation": said}


def _muse(examples: Sequence[Example]) -> Log:
    log: Log = {}
    for name, theirs in MUSE_ROUGE.items():
        asked, answer = ("prompt", REST) if name == "verbmem" else ("question", "answer")
        rows = of_set(examples, name)
        log[theirs] = {"value_by_index": {str(row["index"]): _rouge(row, asked, answer) for row in rows}}
    return log


def _privacy(examples: Sequence[Example], options: PrivacyOptions) -> Log:
    """Scores of single examples, but of the attack ``reference``: retrain's own are needed for it."""
    muse = isinstance(options, MuseOptions)
    log: Log = {}
    if options.memorisation:
        rows = of_set(examples, "verbmem" if muse else "forget")
        correct = {str(row["index"]): tokenwise(row, REST if muse else "answer", "correct")[:-1] for row in rows}
        strength = {index: {"score": extraction_strength(row)} for index, row in correct.items()}
        exact = {index: {"score": exact_memorisation(row)} for index, row in correct.items()}
        log = {"extraction_strength": {"value_by_index": strength}, "exact_memorization": {"value_by_index": exact}}
    attacks: list[Attack] = [*options.membership]
    if options.privleak and "min_k" not in attacks:
        attacks.append("min_k")
    sets = ("privleak_forget", "privleak_holdout") if muse else ("forget", "holdout")
    for attack in attacks:
        if attack == "reference":
            continue
        score = muse_score(attack, options, None) if isinstance(options, MuseOptions) else tofu_score(attack, None)
        sides = [{str(row["index"]): score(row) for row in of_set(examples, name)} for name in sets]
        area = auc(*(list(side.values()) for side in sides))
        log[f"mia_{attack}"] = {
            **{name: _scores(side) for name, side in zip(("forget", "holdout"), sides, strict=True)},
            "auc": area,
            "agg_value": area,
        }
    return log


def _scores(values: Mapping[str, float]) -> Log:
    by_index = {index: {"score": value} for index, value in values.items()}
    return {"agg_value": mean(list(values.values())), "value_by_index": by_index}
