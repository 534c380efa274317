"""``perf.transformers_loop`` with our rows packed: neither padding nor a reference model, against a loop with both."""

from __future__ import annotations

from typing import Any

from perf.common import Options, run
from perf.transformers_loop import compare

BOUND = 0.75


def measure(given: Options) -> list[dict[str, Any]]:
    return [compare("packed_loop", BOUND, given, packed=True)]


if __name__ == "__main__":
    run(measure, __doc__)
