"""What can be handed to an auditor: what was asked, models before and after, data, method, and what every check says.

``evidence.json`` holds it for all models, and the model card beside each unlearned checkpoint for that one. Neither has
a text of the data: what was forgotten is named by the names that the user gave and by the SHA-256 of the files.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pipeline.benchmarks.base import Metric
from pipeline.data.json_files import read_object
from pipeline.report import examples
from pipeline.report.outcomes import RULES, Check, checks, overall
from pipeline.report.read import Group, Result
from pipeline.specs import ReportSpec

SCHEMA = 1
LIMITS = (
    "The outcomes are about the checks that were made, on the examples that were given: another question, another "
    "attack or access of another kind may bring back what these did not.",
    "Where there is no retrain model, nothing shows what a model that never knew would say, so no check says removed.",
    "The fewer examples a check has, the more its value depends on chance.",
    "What else the model was trained on is not known here, nor whether copies of the model before exist elsewhere.",
)


OWN_ANSWERS = (
    "There was no set of what is to be kept. In its place the model's own answers to general prompts, sampled before "
    "unlearning, were trained to stay, and measured. They show whether the model talks as before. They do not show "
    "what else it knew and has lost, and they are not right because they stayed. Where one of them tells of what was "
    "to be forgotten, keeping it worked against forgetting."
)


def document(
    spec: ReportSpec,
    groups: Sequence[Group],
    attacked: Sequence[Group],
    later: Sequence[Group],
    metrics: Sequence[Metric],
) -> dict[str, Any]:
    """What ``evidence.json`` holds.

    Args:
        spec: what is reported
        groups: the models as they are
        attacked: the models after each attack
        later: the models after each further request to forget
        metrics: the catalogue
    """
    results = [result for group in groups for result in group.results]
    target, retrain = (_first(results, kind) for kind in ("target", "retrain"))
    after = [result for group in attacked for result in group.results]
    made = [*results, *(result for group in later for result in group.results)]
    manifest = _manifest(spec)
    return {
        "schema": SCHEMA,
        "request": _request(spec, later, manifest),
        "model_before": _before(spec, target),
        "retrain": None if retrain is None else {"files_sha256": _files(retrain)},
        "data": {
            "source": {key: value for key, value in manifest.get("source", {}).items() if key != "files_sha256"},
            "prepared_files_sha256": manifest.get("files"),
        },
        "configuration": spec.model_dump(mode="json")["config"],
        "rules": RULES,
        "texts": examples.texts_to_forget(spec, groups) if spec.evidence_texts else {},
        "models": [
            _model(spec, result, target, retrain, after, metrics, _names(spec, result, later))
            for result in made
            if result.entry.kind == "unlearned" and target is not None
        ],
        "limits": [*LIMITS, *([OWN_ANSWERS] if _keeps_own_answers(spec) else [])],
    }


def cards(spec: ReportSpec, evidence: Mapping[str, Any]) -> Iterator[tuple[Path, str]]:
    """The model card of every unlearned checkpoint that is there: its path, and its text."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    env = Environment(loader=FileSystemLoader(Path(__file__).parent), undefined=StrictUndefined, trim_blocks=True)
    env.filters["text"] = _inert
    env.filters["yaml"] = lambda value: json.dumps(value, ensure_ascii=False)  # YAML that has no line of its own
    template = env.get_template("card.md.j2")
    folders = {entry.model_id: entry.run for entry in (*spec.entries, *spec.later_requests)}
    for model in evidence["models"]:
        folder = folders[model["model"]]
        if folder is not None and (folder / "checkpoint").is_dir():
            yield folder / "checkpoint" / "README.md", template.render(model=model, evidence=evidence)


def _inert(value: object) -> str:
    """A text that Markdown and HTML take for nothing but a text, on one line."""
    text = " ".join(str(value).split()).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return "".join(f"\\{char}" if char in "\\`*_[]|#!" else char for char in text)


def _first(results: Sequence[Result], kind: str) -> Result | None:
    return next((result for result in results if result.entry.kind == kind), None)


def _manifest(spec: ReportSpec) -> dict[str, Any]:
    """What preparing the data wrote down; empty where it is not there."""
    path = spec.steps["data"] / "manifest.json" if "data" in spec.steps else None
    return read_object(path) if path is not None and path.is_file() else {}


def _request(spec: ReportSpec, later: Sequence[Group], manifest: Mapping[str, Any]) -> dict[str, Any]:
    """What is to be forgotten: the split of every request, and of a user's own sets the names and the files' hashes."""
    splits = [spec.split, *dict.fromkeys(_split(result) for group in later for result in group.results)]
    hashes = manifest.get("source", {}).get("files_sha256") or {}
    train = manifest.get("train", {})
    found = []
    for split in splits:
        names = _forgotten(spec, split)
        found.append(
            {
                "name": split,
                "sets": {name: _digests(hashes.get(name)) for name in names},
                "tokenised_sha256": train.get("forget" if split == spec.split else split, {}).get("sha256"),
            }
        )
    return {"experiment": spec.experiment, "benchmark": spec.benchmark, "requests": found}


def _digests(files: Any) -> list[str]:
    """Hashes without the names of files, which may name a person."""
    return sorted(files.values()) if isinstance(files, dict) else [files] if files else []


def _keeps_own_answers(spec: ReportSpec) -> bool:
    """Whether a user's set is what the model before unlearning answered itself."""
    sets = (spec.config.get("source") or {}).get("sets")
    return isinstance(sets, dict) and any(one.get("own_answers") is not None for one in sets.values())


def _forgotten(spec: ReportSpec, split: str) -> list[str]:
    """A user's sets that a split forgets; none where the data are a benchmark's."""
    splits = (spec.config.get("source") or {}).get("splits")
    uses = splits.get(split, {}) if isinstance(splits, dict) else {}
    names = uses.get("forget", []) if isinstance(uses, dict) else []
    return [names] if isinstance(names, str) else list(names)


def _split(result: Result) -> str:
    """The split of a later request, which ends the name of the model's run."""
    name = result.entry.model_id.rpartition("-seed-")[0]
    run = "-".join(filter(None, (result.entry.method, result.entry.variant)))
    return name.removeprefix(f"{run}.")


def _names(spec: ReportSpec, result: Result, later: Sequence[Group]) -> set[str]:
    """The names of sets that later requests up to the model's own have forgotten."""
    number = result.entry.request or 1
    splits = {_split(other) for group in later for other in group.results if 2 <= (other.entry.request or 1) <= number}
    return {name for split in splits for name in _forgotten(spec, split)}


def _before(spec: ReportSpec, target: Result | None) -> dict[str, Any]:
    model = spec.config.get("model") or {}
    origin = {key: model[key] for key in ("hub", "revision", "path") if model.get(key)}
    published = (model.get("checkpoints") or {}).get("target") or {}
    if isinstance(published, dict):
        origin |= {key: published[key] for key in ("hub", "revision", "folder") if published.get(key)}
    return {"name": spec.model, "origin": origin, "files_sha256": None if target is None else _files(target)}


def _files(result: Result) -> dict[str, str] | None:
    """The checkpoint's files by the record of the step that wrote it."""
    return _made(result).get("checkpoint")


def _made(result: Result) -> Mapping[str, Any]:
    """The record of the step that made the model; empty for one that an evaluation alone is known of."""
    return next((record for step, record in result.provenance.items() if step not in ("evaluate", "judge")), {})


def _model(
    spec: ReportSpec,
    result: Result,
    target: Result,
    retrain: Result | None,
    after: Sequence[Result],
    metrics: Sequence[Metric],
    names: set[str],
) -> dict[str, Any]:
    entry, made = result.entry, _made(result)
    asked = [metric for metric in metrics if _applies(metric, names)]
    found = checks(asked, result.metrics, target.metrics, None if retrain is None else retrain.metrics)
    for attack in spec.attacks:
        both = {other.entry.model_id: other.metrics for other in after if other.entry.attack == attack.name}
        model, before = both.get(f"{entry.model_id}.{attack.name}"), both.get(f"{target.entry.model_id}.{attack.name}")
        if model is None or before is None:
            continue
        never = None if retrain is None else both.get(f"{retrain.entry.model_id}.{attack.name}")
        found += checks(asked, model, before, never, attack.name)
    outcome, reason = overall(found, result.flags, any(check.attack for check in found))
    return {
        "model": entry.model_id,
        "method": entry.method,
        "title": entry.title,
        "variant": entry.variant,
        "seed": entry.seed,
        "request": entry.request or 1,
        "outcome": outcome,
        "reason": reason,
        "flags": sorted(result.flags),
        "files_sha256": made.get("checkpoint"),
        "checks": [_plain(check) for check in found],
        "metrics": {
            key: {"target": _number(target.metrics.get(key)), "model": _number(value)}
            for key, value in result.metrics.items()
        },
        "attacks": [attack.model_dump(mode="json") for attack in spec.attacks],
        "code": made.get("git"),
        "image": made.get("image"),
        "packages": made.get("packages"),
        "specification_sha256": made.get("spec_sha256"),
        "times": {key: made.get(key) for key in ("started", "ended")},
    }


def _applies(metric: Metric, names: set[str]) -> bool:
    """Whether a metric is about what the model was asked to forget: sets of requests that came later are not."""
    return metric.better is not None or metric.key.startswith(("mia_", *(f"{name}_" for name in names)))


def _number(value: float | None) -> float | None:
    return value if value is None or math.isfinite(value) else None


def _plain(check: Check) -> dict[str, Any]:
    return {key: value for key, value in asdict(check).items() if key != "telling"}
