"""An experiment that builds on another one, and any experiment at the scale of the mini models.

``base: NAME`` takes over what another experiment says; the file's own entries go over it. ``scale: mini`` keeps an
experiment's methods, variants, seeds and everything about its report. Models, data, training, batches and steps are
then those of the experiment that the benchmark's file names as its ``mini``.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipeline.config.command_line import with_settings
from pipeline.config.located_yaml import ConfigError, Document, hint, merge, read
from pipeline.config.named_files import CONFIGS, beside, is_path

MINI = "-mini"  # ends the name of results at mini scale
NAMED = ("name", "title")  # say that scale, also where the command line sets them
EVERY_METHOD = "mini-all"  # has the hyper-parameters at that scale of methods that the benchmark's own mini lacks
# Of the stand-in; everything else is the experiment's own.
SCALED = ("benchmark", "split", "utility", "model", "layout", "runtime", "data", "training", "evaluation")
# Of the section ``unlearning``: batches and steps, which are the stand-in's. What else is there stays.
STEPS = (
    *("epochs", "max_steps", "global_batch", "micro_batch", "micro_batch_tokens", "packed", "warmup_epochs"),
    *("optimizer", "steps_per_epoch", "accumulation", "checkpoint_every", "validation", "diagnostics"),
)
LOSSES = ("forget", "retain", "rule")  # of a method's overrides: what a variant is about


def composed(experiment: str | Path, settings: Sequence[str], problems: list[str]) -> Document:
    """The document of an experiment with what it builds on, settings of the command line, and its scale.

    Args:
        experiment: Its file, or the name of one of ``workflow_configs/experiments``.
        settings: ``KEY=VALUE`` texts of the command line.
        problems: Gets a message for everything that is wrong.

    Raises:
        ConfigError: A file cannot be read, or experiments build on each other in a circle.
    """
    document = with_settings(_with_base(file_of(experiment), []), settings, problems)
    if not isinstance(document.data, dict):
        return document
    scale = document.data.get("scale", "mini" if _is_result(experiment) else "full")
    if scale not in ("mini", "full"):
        problems.append(document.problem(("scale",), f"unknown value {scale!r}{hint(str(scale), ['full', 'mini'])}"))
    own = _without(document, ("scale",))
    if scale != "mini":
        return own
    # Once more: what is set goes over the stand-in's values too, but for what the scale is added to.
    again = [text for text in settings if text.partition("=")[0].strip() not in NAMED]
    return _without(with_settings(_mini(own, problems), again, problems), ("scale",))


def file_of(experiment: str | Path) -> Path:
    """The file of an experiment that is given by its path or its name, which may be that of its results at mini scale.

    Raises:
        ConfigError: There is none; the known names are in the message.
    """
    path = Path(experiment).expanduser()
    if path.suffix in (".yaml", ".yml") or path.is_file():
        return path
    named = _named(str(experiment).removesuffix(MINI) if _is_result(experiment) else str(experiment))
    if not named.is_file():
        known = sorted(file.stem for file in named.parent.glob("*.yaml"))
        raise ConfigError([f"experiment: no file and no known name: {str(experiment)!r}{hint(str(experiment), known)}"])
    return named


def _is_result(experiment: str | Path) -> bool:
    """Whether this is what a known experiment's results at mini scale are called."""
    name = str(experiment)
    known = _named(name).is_file() or Path(name).expanduser().is_file()
    return name.endswith(MINI) and not known and _named(name.removesuffix(MINI)).is_file()


def _named(name: str) -> Path:
    return CONFIGS / "experiments" / f"{name}.yaml"


def _with_base(file: Path, above: list[Path]) -> Document:
    """A file's document over that of the experiment that it builds on.

    The base's list of methods, seeds and the like are replaced where the file has its own.
    """
    document = read(file)
    name = document.data.get("base") if isinstance(document.data, dict) else None
    if name is None:
        return document
    if not isinstance(name, str) or _is_result(name):
        raise ConfigError([document.problem(("base",), f"{name!r}: the name or the file of an experiment is needed")])
    try:
        other = beside(file, name) if is_path(name) else file_of(name)
    except ConfigError as error:
        raise ConfigError([document.problem(("base",), error.problems[0])]) from None
    if other.absolute() in [*above, file.absolute()]:
        raise ConfigError([document.problem(("base",), f"{name!r} builds on this file itself")])
    base = _without(_with_base(other, [*above, file.absolute()]), ("name",))  # mappings with two names do not merge
    return merge(base, _without(document, ("base",)))


def _mini(own: Document, problems: list[str]) -> Document:
    """The experiment on the mini models and data."""
    stand_in = _stand_in(own, problems)
    if stand_in is None:
        return own
    known = [entry for document in (stand_in, read(file_of(EVERY_METHOD))) for entry in _entries(document)]
    data, marks = dict(own.data), dict(own.marks)
    for key in (*SCALED, "unlearning"):
        data.pop(key, None)
    data |= {key: stand_in.data[key] for key in SCALED if key in stand_in.data}
    given = own.data.get("unlearning")
    kept = {key: value for key, value in (given if isinstance(given, dict) else {}).items() if key not in STEPS}
    data["unlearning"] = {**stand_in.data.get("unlearning", {}), **kept}
    data["name"], data["title"] = f"{own.data.get('name')}{MINI}", f"{own.data.get('title')}, at mini scale"
    if isinstance(own.data.get("methods"), list):
        data["methods"] = [_scaled(entry, known) for entry in own.data["methods"]]
    if isinstance(data.get("report"), dict):  # nobody publishes numbers of a mini benchmark
        data["report"] = {key: value for key, value in data["report"].items() if key != "published_of"}
    marks = {key: mark for key, mark in marks.items() if not key or key[0] not in (*SCALED, "unlearning")}
    marks |= {key: mark for key, mark in stand_in.marks.items() if key and key[0] in (*SCALED, "unlearning")}
    return Document(data, marks)


def _stand_in(own: Document, problems: list[str]) -> Document | None:
    """The experiment whose models and data an experiment has at mini scale."""
    benchmark = own.data.get("benchmark")
    if isinstance(benchmark, dict):
        found = benchmark.get("mini")
    else:
        name = str(benchmark)
        file = beside(own.mark(("benchmark",)).file, name) if is_path(name) else CONFIGS / f"benchmarks/{name}.yaml"
        found = read(file).data.get("mini") if file.is_file() else None
    if not isinstance(found, str):
        problems.append(own.problem(("benchmark",), f"{benchmark!r} names no 'mini', so there is no scale: mini"))
        return None
    return _with_base(file_of(found), [])


def _entries(document: Document) -> list[dict[str, Any]]:
    entries = document.data.get("methods", [])
    return [entry for entry in entries if isinstance(entry, dict) and "variant" not in entry]


def _scaled(entry: Any, known: list[dict[str, Any]]) -> Any:
    """A method of an experiment with the hyper-parameters of the mini scale; a variant keeps what makes it one."""
    given = entry if isinstance(entry, dict) else {"method": entry}
    found = next((each for each in known if each["method"] == given.get("method")), {})
    overrides = dict(found.get("overrides", {}))
    if "variant" in given:
        of_variant = given.get("overrides") or {}
        if not isinstance(of_variant, dict):
            return entry  # which checks refuse
        for key in LOSSES:
            if isinstance(of_variant.get(key), dict):
                overrides[key] = {**(overrides.get(key) or {}), **of_variant[key]}
            elif key in of_variant:
                overrides[key] = of_variant[key]
    return {**{key: value for key, value in given.items() if key != "overrides"}, "overrides": overrides}


def _without(document: Document, key: tuple[str, ...]) -> Document:
    """A document without one of its first keys."""
    data = {name: value for name, value in document.data.items() if name != key[0]}
    return Document(data, {place: mark for place, mark in document.marks.items() if place[:1] != key})
