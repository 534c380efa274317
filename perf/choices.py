"""Four choices after a question that follows answered ones, against transformers, which reads each from the start.

The model and transformers' batches are those of ``perf.evaluation``. Tokens are random: a question has 80, a choice 3,
and the examples before the question the rest of the context.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from perf import evaluation
from perf.common import Options, run
from pipeline.benchmarks.requests import Instance

BOUND = 0.15
QUESTION, CHOICE = 80, 3
QUESTIONS = 8  # of a step


def measure(given: Options) -> list[dict[str, Any]]:
    scale = evaluation.scale_of(given.size)
    rng = np.random.default_rng(0)

    def ids(count: int) -> list[int]:
        return [int(token) for token in rng.integers(3, scale.config["vocab_size"], size=count)]

    examples = ids(scale.config["max_position_embeddings"] - QUESTION - CHOICE)
    every = []
    for index in range(QUESTIONS * given.steps):
        prompt = [*examples, *ids(QUESTION)]
        every.append(Instance("questions", index, {}, {str(choice): (prompt, ids(CHOICE)) for choice in range(4)}))
    found, walls = evaluation.compare("choices", BOUND, given, scale, every, None)
    found["notes"] = [f"{len(examples)} tokens of examples", f"wall: {walls}"]
    return [found]


if __name__ == "__main__":
    run(measure, __doc__, sizes=("tiny", "2M"))
