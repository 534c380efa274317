"""YAML files whose every value knows its file, line and key, so that an error can say where it comes from."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from types import UnionType
from typing import Any, TypeVar, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError

from megatron_ext.schema.renamed_keys import renamed
from megatron_ext.schema.safe_yaml import Loader
from pipeline.data.errors import printable, unread

Key = tuple[str | int, ...]
M = TypeVar("M", bound=BaseModel)
NAME = r"^[a-z0-9][a-z0-9._-]*$"
PATTERNS = {NAME: "small letters, digits, '.', '_' and '-' are, and the first is a letter or a digit"}  # in words
KEYS = ("str", "int", "merge", "value")  # YAML's types of keys; layouts are given by number


class ConfigError(Exception):
    """What is wrong with a configuration: all of it, a line a problem."""

    def __init__(self, problems: list[str]):
        self.problems = list(dict.fromkeys(map(printable, problems)))
        super().__init__("\n".join(self.problems))


@dataclass(frozen=True)
class Mark:
    """Where a value stands: file, line from 1, and its key in that file; or, with 0, an option of the command line."""

    file: Path
    line: int
    key: Key


@dataclass
class Document:
    """Plain data with a mark for every mapping entry and list item in it."""

    data: Any
    marks: dict[Key, Mark] = field(default_factory=dict)

    def at(self, *key: str | int) -> Document:
        """The part under ``key``; an empty mapping where there is none."""
        data = self.data
        for part in key:
            try:
                data = data[part]
            except (KeyError, IndexError, TypeError):
                return Document({}, {(): self.mark(key)})
        size = len(key)
        marks = {place[size:]: mark for place, mark in self.marks.items() if place[:size] == key}
        return Document(data, marks)

    def under(self, name: str) -> Document:
        """A document with this one as the value of ``name``."""
        marks = {(name, *key): mark for key, mark in self.marks.items()}
        return Document({name: self.data}, {(): self.mark(())} | marks)

    def mark(self, key: Key) -> Mark:
        """The mark of ``key``, or of the closest entry around it with the rest of the key added."""
        for size in range(len(key), -1, -1):
            if key[:size] in self.marks:
                mark = self.marks[key[:size]]
                return Mark(mark.file, mark.line, mark.key + key[size:])
        raise KeyError(key)

    def problem(self, key: Key, message: str) -> str:
        """``file:line: key: message``, or ``--option key: message``."""
        mark = self.mark(key)
        name = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in mark.key).lstrip(".")
        place = f"{short(mark.file)}:{mark.line}: " if mark.line else f"{mark.file} "
        return f"{place}{name + ': ' if name else ''}{message}"


def read(path: Path, empty: bool = False) -> Document:
    """A YAML file whose top is a mapping; raises ``ConfigError`` for one that cannot be read, and for doubled keys.

    Args:
        path: The file.
        empty: Whether it may hold nothing, or comments alone.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
        loader = Loader(text)
    except OSError as error:
        raise ConfigError([f"{short(path)}: {unread(Path(path), error)}"]) from None
    except UnicodeDecodeError as error:
        raise ConfigError([f"{short(path)}: not UTF-8 text, from byte {error.start} on"]) from None
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise ConfigError([f"{short(path)}:{line}: not YAML: {error.reason}"]) from None
    try:
        node = loader.get_single_node()
        if node is None and empty:
            return Document({}, {(): Mark(Path(path), 1, ())})
        if not isinstance(node, yaml.MappingNode):
            raise ConfigError([f"{short(path)}: expected lines of 'key: value'"])
        wrong = [f"{short(path)}:{line}: {message}" for message, line in wrong_nodes(node, set(), ())]
        if wrong:
            raise ConfigError(wrong)
        marks: dict[Key, Mark] = {(): Mark(Path(path), 1, ())}
        _walk(loader, node, (), Path(path), marks)
        return Document(loader.construct_document(node), marks)
    except yaml.MarkedYAMLError as error:
        where = f"{short(path)}:{error.problem_mark.line + 1}" if error.problem_mark else short(path)
        raise ConfigError([f"{where}: not YAML: {error.problem}"]) from None
    finally:
        loader.dispose()


def wrong_nodes(node: Any, seen: set[int], around: tuple[int, ...]) -> Iterator[tuple[str, int]]:
    """What YAML allows and a configuration does not, with its line: doubled keys, keys that are neither text nor whole
    numbers, and values that hold themselves.

    ``seen`` holds the nodes that aliases came by already, ``around`` those that ``node`` lies in.
    """
    if id(node) in around:
        yield "an alias stands inside of what it stands for", node.start_mark.line + 1
    if id(node) in seen or isinstance(node, yaml.ScalarNode):
        return
    seen.add(id(node))
    names: set[str] = set()
    for item in node.value:
        if isinstance(node, yaml.MappingNode):
            name, item = item
            line = name.start_mark.line + 1
            if not isinstance(name, yaml.ScalarNode):
                yield "a key must be text; a text that begins with '{' or '[' needs quotes", line
                continue
            if name.tag.rpartition(":")[2] not in KEYS:
                yield f"{name.value or 'null'}: a key must be text; this one needs quotes", line
            if name.value in names:
                yield f"{name.value}: given twice in one mapping", line
            names.add(name.value)
        yield from wrong_nodes(item, seen, (*around, id(node)))


def _walk(loader: Any, node: Any, key: Key, path: Path, marks: dict[Key, Mark]) -> None:
    children: list[tuple[str | int, Any, Any]] = []
    if isinstance(node, yaml.SequenceNode):
        children = [(i, value, value) for i, value in enumerate(node.value)]
    elif isinstance(node, yaml.MappingNode):
        loader.flatten_mapping(node)  # "<<: *anchor" becomes the entries it stands for, before the mapping's own
        children = [(loader.construct_object(name), name, value) for name, value in node.value]
    for name, where, value in children:
        marks[(*key, name)] = Mark(path, where.start_mark.line + 1, (*key, name))
        _walk(loader, value, (*key, name), path, marks)


def merge(base: Document, over: Document) -> Document:
    """``base`` with the entries of ``over``: mappings merge, and anything else replaces what was there.

    A mapping with another ``name`` (another loss, another rule) replaces too: the old one's settings are not its own.
    """
    named = {d.data["name"] for d in (base, over) if isinstance(d.data, dict) and isinstance(d.data.get("name"), str)}
    if not isinstance(base.data, dict) or not isinstance(over.data, dict) or len(named) == 2:
        return over
    data, marks = dict(base.data), dict(base.marks)
    for name in over.data:
        part = merge(base.at(name), over.at(name)) if name in base.data else over.at(name)
        data[name] = part.data
        marks = {key: mark for key, mark in marks.items() if key[:1] != (name,)}
        marks |= {(name, *key): mark for key, mark in part.marks.items()}
    return Document(data, marks)


def current(kind: str, document: Document, problems: list[str]) -> Document:
    """A document under its keys' new names; each old one in it is added to ``problems``, with the new one.

    ``kind``: what it holds, one of ``megatron_ext.schema.renamed_keys.KEYS``.
    """
    data, keys, found = renamed(kind, document.data)
    problems += [document.problem(key, message) for key, message in found]
    return Document(data, {new: document.marks[old] for new, old in keys.items() if old in document.marks})


def explain(error: ValidationError, model: type[BaseModel], document: Document, whole: bool = True) -> list[str]:
    """A line for each thing that pydantic found wrong in ``document``: where, what was given, what is allowed.

    Of a document that is no ``whole`` one, only what no further entry would make right.
    """
    found = []
    for e in error.errors(include_url=False):
        if not whole and e["type"] in ("missing", "union_tag_not_found", "value_error"):
            continue
        key, message = _strip_tags(e["loc"], e["type"], document.data), _message(e, model)
        part, colon, rest = message.partition(": ")
        if e["type"] == "value_error" and colon and part in _fields(model, e["loc"]):
            key, message = (*key, part), rest  # a check of several entries says first which one it is about
        found.append(document.problem(key, message))
    return found


def check(model: type[M], document: Document, problems: list[str]) -> M | None:
    """``document`` as a ``model``, or ``None`` with its problems added to the list."""
    try:
        return model.model_validate(document.data)
    except ValidationError as error:
        problems += explain(error, model, document)
        return None


def _message(error: Any, model: type[BaseModel]) -> str:
    kind, context = error["type"], error.get("ctx", {})
    if kind in ("extra_forbidden", "invalid_key"):
        return f"unknown key{hint(error['loc'][-1], _fields(model, error['loc'][:-1]))}"
    if kind == "missing":
        return "is missing"
    if kind == "value_error":
        return str(context["error"])
    given = f"{shown(error['input'])} is not allowed: "
    if kind in ("union_tag_invalid", "literal_error"):
        value = context.get("tag", error["input"])
        allowed = re.findall(r"'([^']*)'", context.get("expected_tags") or context["expected"])
        return f"unknown value {value!r}{hint(value, allowed)}"
    if kind in ("model_attributes_type", "model_type", "dict_type"):
        return f"{given}a mapping of keys to values is needed"
    if kind == "union_tag_not_found":
        return f"{given}the key {context['discriminator']} is missing"
    if kind == "string_pattern_mismatch" and context["pattern"] in PATTERNS:
        return given + PATTERNS[context["pattern"]]
    bare = kind == "string_type" and isinstance(error["input"], bool | float | int | date)
    return given + error["msg"][0].lower() + error["msg"][1:] + ("; put it in quotes" if bare else "")


def hint(given: object, allowed: list[str]) -> str:
    """``; did you mean ...? allowed: ...`` for an unknown word."""
    close = difflib.get_close_matches(str(given), allowed, n=1)
    return (f"; did you mean {close[0]!r}?" if close else ";") + f" allowed: {', '.join(allowed) or 'none'}"


def shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def short(path: Path) -> str:
    """``path`` relative to the working directory where it lies below it."""
    absolute = Path(path).absolute()
    return str(absolute.relative_to(Path.cwd()) if absolute.is_relative_to(Path.cwd()) else path)


def _strip_tags(location: Key, kind: str, data: Any) -> Key:
    """A key of the document from pydantic's location, which also names the member of a union."""
    key: list[str | int] = []
    for i, part in enumerate(location):
        if part in (data if isinstance(data, dict) else range(len(data)) if isinstance(data, list) else ()):
            data = data[part]
        elif not (kind == "missing" and i == len(location) - 1):
            continue
        key.append(part)
    return tuple(key)


def _fields(model: type[BaseModel], location: Key) -> list[str]:
    """Names of the fields that the model at ``location`` inside ``model`` has."""
    annotations: list[Any] = [model]
    for part in location:
        models, inner = _models(annotations)
        below = [m.model_fields[part].annotation for m in models if part in m.model_fields]
        tagged = [m for m in models if any(get_args(f.annotation) == (part,) for f in m.model_fields.values())]
        annotations = below or inner or tagged or annotations
    return sorted({name for m in _models(annotations)[0] for name in m.model_fields})


def _models(annotations: list[Any]) -> tuple[list[type[BaseModel]], list[Any]]:
    """The models among ``annotations``, through unions; and what their lists and mappings hold."""
    models: list[type[BaseModel]] = []
    inner: list[Any] = []
    for annotation in _members(annotations):
        if isinstance(annotation, type) and not get_args(annotation) and issubclass(annotation, BaseModel):
            models.append(annotation)
        elif get_origin(annotation) in (list, dict, tuple):
            inner += [get_args(annotation)[-1]]
    return models, inner


def _members(annotations: list[Any]) -> Iterator[Any]:
    for annotation in annotations:
        if get_origin(annotation) in (Union, UnionType):
            yield from _members(list(get_args(annotation)))
        elif hasattr(annotation, "__metadata__"):
            yield from _members([get_args(annotation)[0]])
        else:
            yield annotation
