"""Answers that nothing ends, as those of a collapsed model: 200 tokens for every fourth of TOFU's questions.

Against transformers' ``generate`` in batches of 32, with the model of ``perf.evaluation``. A note says how many answers
are the same. Those of random weights repeat themselves, as those of a collapsed model do.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from perf import evaluation
from perf.common import Options, run

BOUND = 0.45
SHARE = 4


def measure(given: Options) -> list[dict[str, Any]]:
    scale = evaluation.scale_of(given.size)
    rows, every, tokenizer = evaluation.asked(scale, given.size)
    some = [dataclasses.replace(item, targets={}) for item in every[::SHARE] if item.generate is not None]
    found, walls = evaluation.compare("endless", BOUND, given, scale, some, tokenizer)
    found["notes"] = [f"{rows}: {len(some)} answers of {scale.new_tokens} tokens", f"wall: {walls}"]
    return [found]


if __name__ == "__main__":
    run(measure, __doc__, sizes=("tiny", "2M"))
