"""The model that answers a benchmark's questions: megatron_ext's scoring and generation over the ranks of a layout."""

from __future__ import annotations

import hashlib
import sys
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.benchmarks.base import LM
from pipeline.data.tokenizer import Tokenizer

if TYPE_CHECKING:
    from megatron_ext.config import Runtime
    from megatron_ext.inference.generation import GenerateRequest
    from megatron_ext.inference.scoring import Score, ScoreRequest


@dataclass
class Amounts:
    """How much was asked; equal requests count each time.

    ``cut_generations`` counts answers that are shorter than allowed because prompt and answer fill the model's context.
    """

    scored_sequences: int = 0
    scored_tokens: int = 0
    generated_sequences: int = 0
    generated_tokens: int = 0
    cut_generations: int = 0


class Engine(LM):
    """A model that counts what it is asked. Subclasses have the model: they score, continue and measure gradients."""

    def __init__(self, rank: int, tokenizer: Tokenizer, context: int) -> None:
        self.rank, self.tokenizer, self.context = rank, tokenizer, context
        self.amounts = Amounts()
        self.drew = False  # whether an answer was sampled

    def score(self, requests: Sequence[ScoreRequest]) -> list[Score]:
        found = self.find_scores(requests)
        if len(found) != len(requests):
            raise ValueError(f"{len(found)} scores were computed for {len(requests)} requests")
        self.amounts.scored_sequences += len(requests)
        self.amounts.scored_tokens += sum(len(request.target) for request in requests)
        return found

    def generate(self, requests: Sequence[GenerateRequest]) -> list[list[int]]:
        found = self.find_continuations(requests)
        self.drew |= any(request.sampling is not None for request in requests)
        self.amounts.generated_sequences += len(found)
        self.amounts.generated_tokens += sum(map(len, found))
        self.amounts.cut_generations += sum(
            len(ids) < request.max_new_tokens and len(request.prompt) + len(ids) >= self.context
            for request, ids in zip(requests, found, strict=True)
        )
        return found

    @abstractmethod
    def find_scores(self, requests: Sequence[ScoreRequest]) -> list[Score]: ...

    @abstractmethod
    def find_continuations(self, requests: Sequence[GenerateRequest]) -> list[list[int]]: ...

    @abstractmethod
    def gradient_norms(self, requests: Sequence[ScoreRequest]) -> list[float]: ...

    def discard_answers(self) -> None:
        """Remove the answers on disk, which a run after one that was killed would have used. Collective."""


Budgets = tuple[int, int]  # tokens of a batch that is scored, and of one that is answered
OpenEngine = Callable[[Path, "Runtime", Tokenizer, Budgets, Path | None], AbstractContextManager[Engine]]


@contextmanager
def megatron_engine(
    checkpoint: Path, runtime: Runtime, tokenizer: Tokenizer, budgets: Budgets, answers: Path | None
) -> Iterator[Engine]:
    """Load a model over the ranks of a layout.

    Args:
        checkpoint: Hugging Face folder
        runtime: layout, precision and device
        tokenizer: tokenizer of the data
        budgets: tokens of one forward pass that scores, and positions of the key-value cache of answers
        answers: folder in which answers are kept until ``discard_answers``, so that a run after one that was killed
            goes on from them

    Yields:
        the model
    """
    from megatron_ext.distributed import process_groups as runtimes

    with runtimes.start(runtime, seed=0) as ranks:
        # After start(), which settles device and warnings before megatron-core is imported.
        from megatron_ext.checkpoint import reading
        from megatron_ext.checkpoint.fingerprint import model_fingerprint
        from megatron_ext.inference.generation import generate
        from megatron_ext.inference.response_cache import ResponseCache
        from megatron_ext.inference.scoring import score
        from megatron_ext.model.families import family_of

        model = reading.load(checkpoint, ranks)
        identity = {
            "model": model_fingerprint(checkpoint),
            "layout": runtime.layout.model_dump(mode="json"),
            "precision": runtime.precision,
            "device": ranks.device.type,
            "tokenizer": tokenizer.sha256,
            "end of answers": _ends_of_answers(),
        }
        known = ResponseCache(answers, identity, ranks)

        class Megatron(Engine):
            def find_scores(self, requests: Sequence[ScoreRequest]) -> list[Score]:
                return score(model, ranks, requests, budgets[0], answers=known)

            def find_continuations(self, requests: Sequence[GenerateRequest]) -> list[list[int]]:
                ends, stopped = sorted(tokenizer.end_ids), stopped_by(tokenizer)
                return generate(model, ranks, requests, ends, budgets[1], stopped, answers=known)

            def gradient_norms(self, requests: Sequence[ScoreRequest]) -> list[float]:
                from megatron_ext.inference.gradient_norms import gradient_norms

                return gradient_norms(model, ranks, requests, answers=known)

            def discard_answers(self) -> None:
                known.discard()

        yield Megatron(ranks.world_rank, tokenizer, family_of(model.hf_config).context(model.hf_config))


def _ends_of_answers() -> list[str]:
    """Digests of the code that decides where an answer ends, which lies outside of `megatron_ext`."""
    files = (Path(__file__), Path(sys.modules[Tokenizer.__module__].__file__ or ""))
    return [version("tokenizers"), *(hashlib.sha256(file.read_bytes()).hexdigest() for file in files)]


def stopped_by(tokenizer: Tokenizer) -> Callable[[list[int], tuple[str, ...]], bool]:
    """A function that says whether the text of new ids holds one of the stops.

    It is asked after each id, so that only a stop that ends in the last one is looked for. A stop may hold a special
    token: the text is looked at with these too, as lm-evaluation-harness does. They are no part of an answer.
    """

    def stopped(ids: list[int], stops: tuple[str, ...]) -> bool:
        # A token is at least one byte, so that a stop that ends in the last token began at most so many before it.
        longest = max(len(stop.encode("utf-8")) for stop in stops)
        last = ids[-longest - 1 :]
        texts = [tokenizer.decode(last)]
        if not tokenizer.special_ids.isdisjoint(last):
            texts.append(tokenizer.decode(last, skip_special=False))
        return any(stop in text for text in texts for stop in stops)

    return stopped
