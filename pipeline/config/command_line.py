"""Settings that a command line gives in place of an experiment's own, checked as what the file says."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from megatron_ext.schema.safe_yaml import Loader
from pipeline.config.located_yaml import ConfigError, Document, Key, Mark, hint, merge, wrong_nodes
from pipeline.config.named_files import is_path

SET = Path("--set")  # stands for a file in messages


def with_settings(document: Document, given: Sequence[str], problems: list[str]) -> Document:
    """An experiment with settings of the command line in it.

    Args:
        document: The experiment's file.
        given: ``KEY=VALUE`` texts. The value is YAML; a mapping is merged into the one that is there. Parts of the key
            are separated by dots, and a number names an entry of a list. ``methods.NAME.`` is followed by a key of the
            method's file; NAME is a method with its variant, or a method, for all of its variants.
            ``sweep.NAME.`` is followed by a key that is swept.
        problems: Gets a message for everything that is wrong.
    """
    for text in given:
        name, equals, value = text.partition("=")
        parts = name.strip().split(".")
        if not equals or not all(parts):
            problems.append(f"{SET} {text}: expected KEY=VALUE, such as seeds=[0, 1]")
            continue
        try:
            setting = _document(value_of(value), (*parts,))
            for key in _keys(document, parts):
                document = _put(document, key, setting)
        except yaml.YAMLError:
            problems.append(f"{SET} {text}: the value is not YAML")
        except ConfigError as error:
            problems += [f"{SET} {name.strip()}: {message}" for message in error.problems]
        except LookupError as error:
            problems.append(f"{SET} {name.strip()}: {error.args[0]}")
    return document


def value_of(text: str) -> Any:
    """The value of an option in YAML, by the rules of files.

    Raises:
        yaml.YAMLError: The text is not YAML.
        ConfigError: It is, and a configuration does not allow it, such as doubled keys.
    """
    loader = Loader(text)
    try:
        node = loader.get_single_node()
        wrong = [] if node is None else [message for message, _ in wrong_nodes(node, set(), ())]
        if wrong:
            raise ConfigError(wrong)
        return None if node is None else loader.construct_document(node)
    finally:
        loader.dispose()


def _document(value: Any, key: Key) -> Document:
    marks: dict[Key, Mark] = {}

    def walk(part: Any, inner: Key) -> None:
        marks[inner] = Mark(SET, 0, (*key, *inner))
        entries = part.items() if isinstance(part, dict) else enumerate(part) if isinstance(part, list) else ()
        for name, entry in entries:
            walk(entry, (*inner, name))

    walk(value, ())
    return Document(value, marks)


def _keys(document: Document, parts: list[str]) -> list[Key]:
    """Where in the experiment a setting goes: to a method's ``overrides``, by the method's name.

    Raises ``LookupError`` where there is no such method.
    """
    methods = document.data.get("methods")
    if parts[0] not in ("methods", "sweep") or len(parts) == 1 or not isinstance(methods, list):
        return [tuple(parts)]
    text = ".".join(parts[1:])
    ids = [_names(entry) for entry in methods]
    known = sorted({name for names in ids for name in names}, key=len, reverse=True)
    name = next((name for name in known if text == name or text.startswith(f"{name}.")), None)
    if parts[0] == "sweep" and name is not None:  # whose keys have dots
        return [("sweep", name, *([text.removeprefix(f"{name}.")] if text != name else []))]
    if name is None or text == name:
        what = f"unknown method {parts[1]!r}{hint(parts[1], sorted(known))}" if name is None else "a key is missing"
        raise LookupError(what)
    rest = text.removeprefix(f"{name}.").split(".")
    exact = [i for i, names in enumerate(ids) if names[0] == name]
    chosen = exact or [i for i, names in enumerate(ids) if name in names]
    return [("methods", i, "overrides", *rest) for i in chosen]


def _names(entry: Any) -> list[str]:
    """How a method of an experiment may be called: with its variant, and by its own or its file's name."""
    given = entry if isinstance(entry, dict) else {"method": entry}
    method, variant = str(given.get("method")), given.get("variant")
    method = Path(method).stem if is_path(method) else method
    return [f"{method}-{variant}", method] if variant else [method]


def _put(document: Document, key: Key, value: Document) -> Document:
    """``document`` with ``value`` merged into what is at ``key``. Raises ``LookupError`` for no entry of a list."""
    if not key:
        return merge(document, value)
    head, data = key[0], document.data
    if isinstance(data, list):
        if not str(head).isdecimal() or int(head) >= len(data):
            raise LookupError(f"{head!r} is no entry of a list of {len(data)}; allowed: 0 to {len(data) - 1}")
        head = int(head)
        inner = _put(document.at(head), key[1:], value)
        changed: Any = [inner.data if i == head else entry for i, entry in enumerate(data)]
        kept = document.marks
    else:
        if isinstance(data, str) and key[0] == "overrides":
            # A method that is given by its name alone.
            data, document = {"method": data}, document.under("method")
        entries = data if isinstance(data, dict) else {}
        mark = value.mark(())
        empty = Document({}, {(): Mark(mark.file, mark.line, mark.key)})
        inner = _put(document.at(head) if isinstance(entries.get(head), dict | list) else empty, key[1:], value)
        changed = {**entries, head: inner.data}
        kept = document.marks if entries else {(): document.mark(())}
    marks = {place: mark for place, mark in kept.items() if place[:1] != (head,)}
    return Document(changed, marks | {(head, *place): mark for place, mark in inner.marks.items()})
