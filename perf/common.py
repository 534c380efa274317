"""What the benchmarks share: models of a size, batches shaped like TOFU's, and times taken in turns.

The speed of a shared machine drifts, so nothing is compared with a time taken earlier: two variants take the same
optimizer steps in turns, and the figure is the median over steps of the ratio of their times.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from unittest import mock

import numpy as np

from megatron_ext.config import Optimizer, Runtime, TrainableLayers
from megatron_ext.data.sequences import Sequences
from megatron_ext.losses import Loss

if TYPE_CHECKING:
    from megatron_ext.distributed.process_groups import Ranks
    from megatron_ext.model.build import LanguageModel
    from megatron_ext.training.loss_terms import LossTerm

VOCABULARY = 8192
MICRO_BATCH = 8
OPTIMIZER = Optimizer(learning_rate=1e-5)
Losses = Sequence[float]  # of a step: forget, retain


@dataclass(frozen=True)
class Size:
    """A Llama of 12 layers; ``batch``: forget sequences of a step, and as many retain sequences."""

    hidden: int
    feed_forward: int
    heads: int
    batch: int

    @property
    def config(self) -> dict[str, Any]:
        """A Hugging Face config."""
        return {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "hidden_size": self.hidden,
            "intermediate_size": self.feed_forward,
            "num_hidden_layers": 12,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.heads,
            "vocab_size": VOCABULARY,
            "max_position_embeddings": 256,
            "rms_norm_eps": 1e-5,
            "rope_theta": 10000.0,
            "tie_word_embeddings": False,
            "bos_token_id": 0,
            "eos_token_id": 1,
        }


SIZES = {
    "tiny": Size(hidden=32, feed_forward=88, heads=2, batch=4),  # for the test that the benchmarks run
    "10M": Size(hidden=224, feed_forward=608, heads=4, batch=32),
    "100M": Size(hidden=768, feed_forward=2048, heads=12, batch=16),
}


@dataclass(frozen=True)
class Options:
    """What a benchmark is told: a size's name, CPU threads, optimizer steps of each variant."""

    size: str
    threads: int
    steps: int

    @property
    def model(self) -> Size:
        return SIZES[self.size]

    @property
    def runtime(self) -> Runtime:
        return Runtime(device="cpu", threads=self.threads)


def options(doc: str | None, argv: Sequence[str] | None, sizes: Sequence[str]) -> Options:
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--size", choices=sizes, default=sizes[1], help="parameters of the model (default: %(default)s)"
    )
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=5, help="that each variant takes (default: %(default)s)")
    return Options(**vars(parser.parse_args(argv)))


def run(
    measure: Callable[[Options], list[dict[str, Any]]], doc: str | None, sizes: Sequence[str] = tuple(SIZES)
) -> None:
    """The program of a benchmark: its results, a JSON line each."""
    for result in measure(options(doc, None, sizes)):
        print(json.dumps(result), flush=True)


def build(size: Size, ranks: Ranks, trainable_layers: TrainableLayers | None = None) -> LanguageModel:
    """The model of this size, always with the same values."""
    from megatron_ext.checkpoint import reading, tensor_sources
    from megatron_ext.model import build as model

    built = model.build(size.config, ranks, trainable_layers)
    reading.fill(built, ranks, tensor_sources.InitialValues(size.config, seed=0))
    return built


def build_transformers(size: Size) -> Any:
    """The same model as a ``transformers.LlamaForCausalLM``."""
    import transformers

    from megatron_ext.checkpoint import tensor_sources

    config = transformers.LlamaConfig(**size.config, attn_implementation="sdpa", use_cache=False)
    model = transformers.LlamaForCausalLM(config)
    source = tensor_sources.InitialValues(size.config, seed=0)
    model.load_state_dict({name: source.read(name, ()) for name in source.shapes})
    return model


def sequences(count: int, seed: int) -> Sequences:
    """Random tokens with the lengths of TOFU's forget10 under a vocabulary of this size: prompts of 23 +- 7 tokens,
    answers of 42 +- 17."""
    rng = np.random.default_rng(seed)
    prompts = rng.normal(23, 7, count).round().clip(14, 69).astype(int)
    answers = rng.normal(42, 17, count).round().clip(8, 107).astype(int)
    return Sequences.pack(
        [(rng.integers(2, VOCABULARY, size=p + a).tolist(), int(p)) for p, a in zip(prompts, answers, strict=True)]
    )


class Batches:
    """The forget and retain rows of every step; ``reference``: the forget rows' log-probabilities, where given."""

    def __init__(self, given: Options, reference: np.ndarray | None = None) -> None:
        from megatron_ext.data.collate import SequenceDataset

        self.batch = given.model.batch
        self.forget, self.retain = (sequences(self.batch * given.steps, seed) for seed in (1, 2))
        self.forget_dataset = SequenceDataset([self.forget], reference)
        self.retain_dataset = SequenceDataset([self.retain])

    def with_references(self, given: Options, model: LanguageModel, ranks: Ranks) -> Batches:
        """The same, with the log-probabilities under ``model``: what ``megatron_ext.steps.reference`` computes once."""
        from megatron_ext.inference.scoring import ScoreRequest, score

        rows = map(self.forget.row, range(len(self.forget)))
        requests = [ScoreRequest(ids[:prompt].tolist(), ids[prompt:].tolist()) for ids, prompt in rows]
        scores = score(model, ranks, requests, token_budget=2048, progress=False)
        return Batches(given, np.array([s.log_prob for s in scores]))

    def rows(self, step: int) -> range:
        return range(step * self.batch, (step + 1) * self.batch)

    def terms(self, step: int, forget: Loss, retain: Loss) -> list[LossTerm]:
        from megatron_ext.training.loss_terms import LossTerm

        rows = self.rows(step)
        return [
            LossTerm("forget_loss", forget, self.forget_dataset, rows),
            LossTerm("retain_loss", retain, self.retain_dataset, rows),
        ]


@contextmanager
def without_guesses() -> Iterator[None]:
    """Answers token by token: random weights repeat one token, so that every guess of what follows is right."""
    from megatron_ext.inference.lookup import Lookup

    with mock.patch.object(Lookup, "guess", return_value=[]):
        yield


def in_turns(variants: Mapping[str, Callable[[int], Losses]], given: Options) -> dict[str, list[float]]:
    """Seconds that each variant takes for step 0, 1, ..., ``given.steps - 1``; who goes first alternates.

    Of processor time where there is one thread, which other processes do not add to; of wall time where there are
    several. Each variant takes step 0 once more before, untimed: memory is mapped and optimizer states are made in it.
    Raises ``AssertionError`` where the variants do not compute the same losses.
    """
    clock = time.process_time if given.threads == 1 else time.perf_counter
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for turn, step in enumerate([0, *range(given.steps)]):
        losses = []
        for name in list(variants)[:: -1 if turn % 2 else 1]:
            start = clock()
            losses.append([*variants[name](step)])
            if turn:
                seconds[name].append(clock() - start)
        for first, *others in zip(*losses, strict=True):
            assert all(math.isclose(first, other, rel_tol=1e-3, abs_tol=1e-6) for other in others), (
                f"step {step}: losses {losses} of {list(variants)}"
            )
    return seconds


def result(name: str, given: Options, seconds: Mapping[str, Sequence[float]], bound: float) -> dict[str, Any]:
    """The first variant's time over the second's, and whether that is within ``bound``."""
    (first, ours), (second, theirs) = seconds.items()
    ratios = [a / b for a, b in zip(ours, theirs, strict=True)]
    ratio = round(statistics.median(ratios), 3)
    return {
        "benchmark": name,
        "size": given.size,
        "threads": given.threads,
        "steps": given.steps,
        "seconds": {first: round(statistics.median(ours), 4), second: round(statistics.median(theirs), 4)},
        "ratio": ratio,
        "spread": [round(min(ratios), 3), round(max(ratios), 3)],
        "bound": bound,
        "met": ratio <= bound,
        "notes": [],
    }
