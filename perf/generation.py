"""What a new token costs in long answers and in short ones: with a key-value cache, all but the same.

64 prompts of TOFU's lengths are continued by 25, 50, 100, 200 and 400 tokens, with no end token, by the small TOFU
Llama with random weights. What it says repeats itself, so nothing is guessed: each token has its own forward pass. The
figure is the cost of a new token of the longest answers over that of the shortest ones; what it is above 1 is attention
to the tokens that are there already. Without a cache it would be about six, the ratio of the mean lengths.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import yaml

from megatron_ext.distributed import process_groups
from megatron_ext.inference.generation import GenerateRequest, generate
from megatron_ext.schema.safe_yaml import Loader
from perf.common import SIZES, Losses, Options, in_turns, result, run, sequences, without_guesses
from perf.evaluation import SMALL

BOUND = 1.5
TOKEN_BUDGET = 1 << 15  # with which all prompts are one batch, whatever is added to them
PROMPTS = 64
LENGTHS = (400, 25, 50, 100, 200)


def measure(given: Options) -> list[dict[str, Any]]:
    config = SIZES["tiny"].config
    if given.size != "tiny":
        config = yaml.load(SMALL.read_text(encoding="utf-8"), Loader)["architecture"]
    lengths = LENGTHS if given.size != "tiny" else (40, 5)
    rows = sequences(PROMPTS, seed=3)
    prompts = [(ids[:length] % config["vocab_size"]).tolist() for ids, length in map(rows.row, range(PROMPTS))]
    walls = dict.fromkeys(lengths, 0.0)
    with process_groups.start(given.runtime) as ranks:
        from megatron_ext.checkpoint import reading, tensor_sources
        from megatron_ext.model import build as models

        model = models.build(config, ranks)
        reading.fill(model, ranks, tensor_sources.InitialValues(config, seed=0))

        def variant(tokens: int) -> Callable[[int], Losses]:
            requests = [GenerateRequest(prompt, tokens) for prompt in prompts]

            def step(_: int) -> Losses:
                start = time.perf_counter()
                new = generate(model, ranks, requests, (), TOKEN_BUDGET, progress=False)
                walls[tokens] += time.perf_counter() - start
                assert {len(ids) for ids in new} == {tokens}, "else what is divided by is not what was generated"
                return [0.0]

            return step

        with without_guesses():
            seconds = in_turns({str(tokens): variant(tokens) for tokens in lengths}, given)
    each = {f"token of {tokens}": [s / int(tokens) for s in times] for tokens, times in seconds.items()}
    (longest, ours), (shortest, theirs) = list(each.items())[:2]
    found = result("generation", given, {longest: ours, shortest: theirs}, BOUND)
    milliseconds = {tokens: 1000 * min(seconds[str(tokens)]) / tokens for tokens in sorted(lengths)}
    listed = ", ".join(f"{tokens}: {each:.1f}" for tokens, each in milliseconds.items())
    found["notes"] = [f"ms a new token of all {PROMPTS} answers: {listed}"]
    return [found]


if __name__ == "__main__":
    run(measure, __doc__, sizes=("tiny", "2M"))
