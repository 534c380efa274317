"""The full TOFU evaluation (forget10: four sets with paraphrased and perturbed answers, up to 200 new tokens) against
the same work done as open-unlearning does it: transformers, batches of 32 padded in the order of the data, logits of
every position, ``generate``.

The model is the small TOFU Llama with random weights. An answer ends where the row's true one does, as those of a model
that has learnt the rows: what it says costs the same. Both variants are told so only when it happens. Ours guesses
nothing of what follows: random weights repeat one token, which a model that has learnt does not.
Rows are TOFU's own from ``$UNLEARN_SHARED_DATA/tofu`` or ``../shared/data/tofu`` where they are, else generated ones.
They are dealt into as many parts as there are steps, of which each variant takes one after the other, in turns with the
other. Tokenising, loading and metrics, which are the same for both, are not timed.
"""

from __future__ import annotations

import math
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from megatron_ext.distributed import process_groups
from megatron_ext.schema.safe_yaml import Loader
from perf.common import SIZES, Losses, Options, in_turns, result, run, without_guesses
from pipeline.benchmarks.tofu.evaluate import FAMILY
from pipeline.benchmarks.tofu.options import TofuOptions
from pipeline.benchmarks.tofu.synthetic import SyntheticSource
from pipeline.config.load import CONFIGS
from pipeline.data.settings import BpeTokenizer, FolderSource
from pipeline.data.tokenizer import Tokenizer
from pipeline.specs import PrepareSpec
from pipeline.steps.prepare import prepare

if TYPE_CHECKING:
    from torch import Tensor

    from megatron_ext.distributed.process_groups import Ranks
    from pipeline.benchmarks.requests import Instance

BOUND = 0.40
BATCH = 32  # of open-unlearning's evaluation of TOFU
TOKEN_BUDGET = 16384
ROOT = Path(__file__).resolve().parent.parent
SMALL = CONFIGS / "models" / "tofu-small-llama.yaml"


@dataclass(frozen=True)
class Scale:
    """A model, and what it is asked; ``generated``: the rows where TOFU's files are not."""

    config: dict[str, Any]
    new_tokens: int
    generated: SyntheticSource


def scale_of(size: str) -> Scale:
    if size == "tiny":
        config = {**SIZES["tiny"].config, "vocab_size": 512, "num_hidden_layers": 2}
        return Scale(config, 8, SyntheticSource(authors=10, questions_per_author=2, background_authors=0))
    config = yaml.load(SMALL.read_text(encoding="utf-8"), Loader)["architecture"]
    return Scale(config, 200, SyntheticSource(authors=200, background_authors=0))


@dataclass
class Work:
    """What a variant has done: seconds on the clock, tokens generated, answers, log-probabilities of the last part."""

    wall: float = 0.0
    generated: int = 0
    answers: list[list[int]] = field(default_factory=list)
    log_probs: list[float] = field(default_factory=list)

    def add(self, ids: Sequence[int], tokenizer: Tokenizer | None) -> None:
        assert tokenizer is not None
        self.generated += len(ids)
        self.answers.append(ids)
        tokenizer.decode(ids)


Evaluate = Callable[[Sequence["Instance"], Work], None]


def measure(given: Options) -> list[dict[str, Any]]:
    scale = scale_of(given.size)
    rows, every, tokenizer = asked(scale, given.size)
    with without_guesses():
        found, walls = compare("evaluation", BOUND, given, scale, every, tokenizer)
    lengths = [_length(item) for item in every if item.generate is not None]
    found["notes"] = [
        f"{rows}: {sum(len(item.targets) for item in every)} sequences scored, {len(lengths)} answers of "
        f"{sum(lengths) / len(lengths):.0f} tokens on average, {max(lengths)} at most",
        f"wall, the untimed first part included: {walls}",
    ]
    return [found]


def asked(scale: Scale, size: str) -> tuple[str, Sequence[Instance], Tokenizer]:
    """Which rows there are, what is asked of them, and their tokenizer."""
    with tempfile.TemporaryDirectory() as folder:
        rows = _prepare(Path(folder), scale, size)
        tokenizer = Tokenizer.load(Path(folder) / "tokenizer")
        return rows, FAMILY.instances(Path(folder), TofuOptions(max_new_tokens=scale.new_tokens), tokenizer), tokenizer


def compare(
    name: str, bound: float, given: Options, scale: Scale, every: Sequence[Instance], tokenizer: Tokenizer | None
) -> tuple[dict[str, Any], str]:
    """A benchmark's result, and in words seconds on the clock and how many answers are the same.

    A tokenizer is needed where something is generated. Random weights may have two tokens that are as likely.
    """
    parts = [every[part :: given.steps] for part in range(given.steps)]
    done = {"ours": Work(), "open-unlearning's way": Work()}
    with process_groups.start(given.runtime) as ranks:
        variants = {"ours": _ours(scale, ranks, tokenizer), "open-unlearning's way": _theirs(scale, tokenizer)}

        def variant(name: str) -> Callable[[int], Losses]:
            def step(i: int) -> Losses:
                work, start = done[name], time.perf_counter()
                work.log_probs = []
                variants[name](parts[i], work)
                work.wall += time.perf_counter() - start
                return [math.fsum(work.log_probs) / max(1, len(work.log_probs)), work.generated]

            return step

        seconds = in_turns({name: variant(name) for name in variants}, given)
    walls = ", ".join(f"{name} {work.wall:.1f} s" for name, work in done.items())
    ours, theirs = (work.answers for work in done.values())
    same = sum(a == b for a, b in zip(ours, theirs, strict=True))
    return result(name, given, seconds, bound), f"{walls}; {same} of {len(ours)} answers the same"


def _length(item: Instance) -> int:
    """Tokens of an item's answer: as many as the true one has, end token included; all that may be, without one."""
    assert item.generate is not None
    most = item.generate.max_new_tokens
    return min(len(item.targets["answer"][1]), most) if item.targets else most


def _prepare(folder: Path, scale: Scale, size: str) -> str:
    """``folder`` as the prepare step writes it; says which rows there are."""
    files = Path(os.environ.get("UNLEARN_SHARED_DATA", ROOT.parent / "shared" / "data")) / "tofu"
    real = size != "tiny" and files.is_dir()
    prepare(
        PrepareSpec(
            family="tofu",
            source=FolderSource(path=files) if real else scale.generated,
            forget_split="forget10",
            sets=list(FAMILY.sets(TofuOptions())),
            tokenizer=BpeTokenizer(vocab_size=scale.config["vocab_size"]),
            max_length=384 if real else 256,
            output=folder,
        )
    )
    return "TOFU's rows" if real else "generated rows"


def _ours(scale: Scale, ranks: Ranks, tokenizer: Tokenizer | None) -> Evaluate:
    from megatron_ext.checkpoint import reading, tensor_sources
    from megatron_ext.inference.generation import GenerateRequest, generate
    from megatron_ext.inference.scoring import ScoreRequest, score
    from megatron_ext.model import build as models

    model = models.build(scale.config, ranks)
    reading.fill(model, ranks, tensor_sources.InitialValues(scale.config, seed=0))

    def ended(ids: list[int], stops: tuple[str, ...]) -> bool:
        return len(ids) == int(stops[0])

    def evaluate(items: Sequence[Instance], work: Work) -> None:
        requests = [ScoreRequest(*pair) for item in items for pair in item.targets.values()]
        work.log_probs += [s.log_prob for s in score(model, ranks, requests, TOKEN_BUDGET, progress=False)]
        prompts = [
            GenerateRequest(item.generate.prompt, item.generate.max_new_tokens, (str(_length(item)),))
            for item in items
            if item.generate is not None
        ]
        for ids in generate(model, ranks, prompts, (), TOKEN_BUDGET, ended, progress=False):
            work.add(ids, tokenizer)

    return evaluate


def _theirs(scale: Scale, tokenizer: Tokenizer | None) -> Evaluate:
    import torch
    import transformers
    from torch.nn.functional import cross_entropy
    from torch.nn.utils.rnn import pad_sequence

    from megatron_ext.checkpoint import tensor_sources

    transformers.utils.logging.set_verbosity_error()
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**scale.config, attn_implementation="sdpa")).eval()
    source = tensor_sources.InitialValues(scale.config, seed=0)
    model.load_state_dict({name: source.read(name, ()) for name in source.shapes}, strict=False)
    model.tie_weights()

    class Ended(transformers.StoppingCriteria):
        def __init__(self, start: int, lengths: Tensor) -> None:
            self.ends = start + lengths

        def __call__(self, input_ids: Tensor, scores: Any, **_: Any) -> Any:
            return input_ids.size(1) >= self.ends

    def score(pairs: Sequence[tuple[list[int], list[int]]]) -> Iterator[float]:
        for first in range(0, len(pairs), BATCH):
            some = pairs[first : first + BATCH]
            ids = pad_sequence([torch.tensor(p + t) for p, t in some], batch_first=True)
            labels = pad_sequence([torch.tensor([-100] * len(p) + t) for p, t in some], True, -100)
            mask = pad_sequence([torch.ones(len(p) + len(t), dtype=torch.long) for p, t in some], True)
            with torch.no_grad():
                # With the labels, so that the model computes its own loss as well, which is not used.
                logits = model(input_ids=ids, attention_mask=mask, labels=labels).logits[:, :-1].contiguous()
                losses = cross_entropy(logits.transpose(1, 2), labels[:, 1:], ignore_index=-100, reduction="none")
            yield from (-losses.sum(dim=1)).tolist()

    def generate(items: Sequence[Instance]) -> Iterator[list[int]]:
        for first in range(0, len(items), BATCH):
            some = [(item.generate, _length(item)) for item in items[first : first + BATCH] if item.generate]
            longest = max(len(request.prompt) for request, _ in some)
            padding = [longest - len(request.prompt) for request, _ in some]
            prompts = [[0] * left + request.prompt for left, (request, _) in zip(padding, some, strict=True)]
            mask = torch.tensor([[0] * left + [1] * (longest - left) for left in padding])
            with torch.no_grad():
                rows = model.generate(
                    input_ids=torch.tensor(prompts),
                    attention_mask=mask,
                    max_new_tokens=some[0][0].max_new_tokens,
                    do_sample=False,
                    use_cache=True,
                    eos_token_id=None,
                    pad_token_id=0,
                    stopping_criteria=[Ended(longest, torch.tensor([length for _, length in some]))],
                )[:, longest:].tolist()
            yield from (row[:length] for row, (_, length) in zip(rows, some, strict=True))

    def evaluate(items: Sequence[Instance], work: Work) -> None:
        # One set after the other, of each one answer after the other: each is a pass over the data.
        for name in dict.fromkeys(item.set for item in items):
            own = [item for item in items if item.set == name]
            for key in dict.fromkeys(key for item in own for key in item.targets):
                work.log_probs += score([item.targets[key] for item in own if key in item.targets])
            for ids in generate([item for item in own if item.generate is not None]):
                work.add(ids, tokenizer)

    return evaluate


if __name__ == "__main__":
    run(measure, __doc__, sizes=("tiny", "2M"))
