"""Keys of YAML files that have another name than they had, so that an old file is told the new one.

``KEYS`` is the only list of them. Nothing reads a file with an old key: it is an error that names the new one.
"""

from __future__ import annotations

from typing import Any, NamedTuple

Key = tuple[str | int, ...]

_RUNTIME = {"runtime.recompute": "recompute_activations"}
_LAYERS = {
    "scope": "trainable_layers",
    "trainable_layers.layer": "up_to",
    "trainable_layers.train_layers": "layers_to_transform",
    "trainable_layers.matrices": "target_modules",
}
_SOURCE = {"source.folds": "requests"}
_FAMILY = {"family=tasks": "lm_eval"}
# By kind of file: where a key stood, with the new names of the keys around it, and its new name. ``*`` stands for each
# entry of a list, and ``key=value`` for a value that has another name.
KEYS: dict[str, dict[str, str]] = {
    "experiment": {
        **_RUNTIME,
        "folds": "requests",
        "requests.kind": "order",
        "benchmark=mini-muse-folds": "mini-muse-requests",
    },
    "benchmark": {**_SOURCE, **_FAMILY},
    "method": {**_LAYERS, "alternatives": "preferred_answers"},
    "options of lm_eval": {"layout": "prompt_format"},
    "specification": {
        **_RUNTIME,
        **_LAYERS,
        **_SOURCE,
        **_FAMILY,
        "step": "program",
        "optimizer_steps": "steps",
        "topics.*.reference": "reference_logps",
        "topics.*.retain_reference": "retain_reference_logps",
        "topics.*.alternatives": "preferred_answers",
        "topics.*.alternatives_reference": "preferred_answers_logps",
        "folds": "requests",
        "folded": "later_requests",
        "entries.*.fold": "request",
        "attacked.*.fold": "request",
        "later_requests.*.fold": "request",
        "options.family=tasks": "lm_eval",
        "options.layout": "prompt_format",
    },
}


class Renamed(NamedTuple):
    """``key``: as it stands in the file; ``message``: what it is called now."""

    key: Key
    message: str


def renamed(kind: str, data: Any) -> tuple[Any, dict[Key, Key], list[Renamed]]:
    """Give the keys of a file their new names.

    Args:
        kind: What the file holds: a key of ``KEYS``, or a kind in which nothing was renamed.
        data: The file's content, as plain data. It is left as it is.

    Returns:
        The content with new names; by every key in it, the key in the file; and what was renamed.
    """
    rows, keys = KEYS.get(kind, {}), dict[Key, Key]()
    found: list[Renamed] = []

    def walk(value: Any, old: Key, new: Key) -> Any:
        keys[new] = old
        if isinstance(value, list):
            return [walk(entry, (*old, i), (*new, i)) for i, entry in enumerate(value)]
        if isinstance(value, dict):
            return {name: walk(value[was], (*old, was), (*new, name)) for name, was in names(value, old, new).items()}
        now = rows.get(f"{_dotted(new)}={value}") if isinstance(value, str) else None
        if now is None:
            return value
        found.append(Renamed(old, f"{value!r} was renamed to {now!r}"))
        return now

    def names(mapping: dict[Any, Any], old: Key, new: Key) -> dict[Any, Any]:
        """By new name of an entry, its name in the file; of both where both are there, the new one."""
        result: dict[Any, Any] = {}
        for name in mapping:
            now = rows.get(_dotted((*new, name)))
            if now is None:
                result[name] = name
                continue
            found.append(Renamed((*old, name), f"was renamed to '{_text((*new, now))}'"))
            if now not in mapping:
                result[now] = name
        return result

    return walk(data, (), ()), keys, found


def _dotted(key: Key) -> str:
    return ".".join("*" if isinstance(part, int) else str(part) for part in key)


def _text(key: Key) -> str:
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in key).lstrip(".")
