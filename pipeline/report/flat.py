"""Nested records as pairs of a key and a text, as provenance and comparisons list them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any


def flat(value: Any, prefix: str = "") -> dict[str, str]:
    """Nested objects as texts by dotted key; ``prefix`` begins the keys."""
    if isinstance(value, Mapping) and value:
        parts = [flat(item, f"{prefix}.{key}" if prefix else str(key)) for key, item in value.items()]
        return {key: item for part in parts for key, item in part.items()}
    if not prefix:
        return {}
    return {prefix: value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)}
