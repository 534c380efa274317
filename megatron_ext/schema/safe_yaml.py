"""How YAML is read: as plain data, of which a file of few bytes cannot make much."""

from __future__ import annotations

import re
from typing import Any

import yaml

DEEPEST, REPEATED, BITS = 50, 10_000, 128  # nesting, nodes that aliases stand for, and a whole number's size


class Loader(yaml.SafeLoader):
    """YAML 1.2's numbers. YAML 1.1, which PyYAML reads, takes ``1e-5`` for a text, ``0100`` for 64 and ``1:30`` for 90.

    A few bytes may not become much: nesting, what aliases stand for and whole numbers are bounded. Everything that is
    wrong is a ``yaml.YAMLError``.
    """

    def __init__(self, text: str) -> None:
        super().__init__(text)
        # libyaml's events come several times as fast as those of PyYAML's own parser, which is there without it.
        self._events: Any = yaml.CSafeLoader(text) if yaml.__with_libyaml__ else super()
        self._depth = self._nodes = self._repeated = 0
        self._sizes: dict[int, int] = {}  # of nodes by id, with what their aliases stand for

    def check_event(self, *kinds: Any) -> bool:
        """Whether the next event is of one of these kinds; of any, where none is given."""
        return bool(self._events.check_event(*kinds))

    def peek_event(self) -> Any:
        """The next event, which stays the next one."""
        return self._events.peek_event()

    def get_event(self) -> Any:
        """The next event."""
        return self._events.get_event()

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """The next node of the document, counted."""
        mark = self.peek_event().start_mark
        if self.check_event(yaml.AliasEvent):
            node = super().compose_node(parent, index)
            size = self._sizes.get(id(node), 1)
            self._nodes += size
            self._repeated += size
            if self._repeated > REPEATED:
                raise yaml.composer.ComposerError(None, None, f"aliases stand for more than {REPEATED} values", mark)
            return node
        self._depth += 1
        if self._depth > DEEPEST:
            raise yaml.composer.ComposerError(None, None, f"nested more than {DEEPEST} deep", mark)
        before = self._nodes
        self._nodes += 1
        node = super().compose_node(parent, index)
        self._sizes[id(node)] = self._nodes - before
        self._depth -= 1
        return node

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        """The value of a node; one that its tag cannot have is an error as others are."""
        try:
            value = super().construct_object(node, deep)
            if isinstance(value, int) and value.bit_length() > BITS:
                raise ValueError
            return value
        except (ValueError, LookupError, TypeError, AttributeError, OverflowError):
            kind = node.tag.rpartition(":")[2]
            given = repr(node.value[:40]) if isinstance(node, yaml.ScalarNode) else "this"
            message = f"{given} is no {kind}, or none that can be used"
            raise yaml.constructor.ConstructorError(None, None, message, node.start_mark) from None


class Dumper(yaml.SafeDumper):
    """Puts every text into quotes that is no text for ``Loader``, or for a reader of YAML 1.1."""


TAG = "tag:yaml.org,2002:"
INTEGER = re.compile(r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+")
FLOAT = re.compile(
    r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)"
)


def _number(loader: Loader, node: yaml.Node) -> int | float:
    """The number of a node, whose tag may be written in the file; ``ValueError`` for a text that is none."""
    if not isinstance(node, yaml.ScalarNode):
        raise ValueError
    text = node.value
    if node.tag == f"{TAG}int":
        if not INTEGER.fullmatch(text):
            raise ValueError
        return int(text, {"0o": 8, "0x": 16}.get(text[:2], 10))
    if not FLOAT.fullmatch(text):
        raise ValueError
    return float(text.replace(".", "") if text.lower().endswith(("inf", "nan")) else text)


def _take_numbers() -> None:
    """Give ``Loader`` YAML 1.2's numbers in the place of YAML 1.1's, and let ``Dumper`` know both."""
    others = yaml.SafeLoader.yaml_implicit_resolvers.items()
    numbers = (f"{TAG}int", f"{TAG}float")
    Loader.yaml_implicit_resolvers = {
        first: [(tag, form) for tag, form in known if tag not in numbers] for first, known in others
    }
    for tag, form in zip(numbers, (INTEGER, FLOAT), strict=True):
        whole = re.compile(f"(?:{form.pattern})$")  # the first that matches decides: an integer is no float
        for kind in (Loader, Dumper):
            kind.add_implicit_resolver(tag, whole, list("-+.0123456789"))
        Loader.add_constructor(tag, _number)


_take_numbers()
