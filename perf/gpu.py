"""What unlearning and evaluation cost on one GPU: a JSON line a result, on the screen and in a file.

    python -m perf.gpu --out results/gpu-proof/gpu.jsonl --deadline 300

Sections run in their order, and none starts in the last seconds before the deadline; what is left out is said, and
makes the exit status 1. Models have random weights and the shapes of Llama 3; batches have the lengths of TOFU's
forget10. ``--device cpu --tiny`` runs every section without a GPU, at a shape that means nothing, to see that it runs.

Seconds are medians of steps after an untimed one. Tokens are those of the data, without padding. MFU is of the peak
rate of the GPU's name in ``PEAK_FLOPS``; its floating-point operations are 6 a weight of the blocks and each token, and
6 a weight of the output layer and each position that it is applied to.
"""

from __future__ import annotations

import argparse
import copy
import gc
import json
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from megatron_ext.config import Optimizer, Runtime
from megatron_ext.data.sequences import Sequences
from megatron_ext.distributed import process_groups
from megatron_ext.losses.ga import GA
from megatron_ext.losses.nll import NLL
from megatron_ext.losses.npo import NPO
from megatron_ext.updates.blur import Blur
from megatron_ext.updates.weighted_sum import WeightedSum

if TYPE_CHECKING:
    from torch import Tensor

    from megatron_ext.data.collate import SequenceDataset
    from megatron_ext.distributed.process_groups import Ranks
    from megatron_ext.model.build import LanguageModel

# Dense bf16 products, by their makers; of the names that a GPU's holds, the first: some forms are slower.
PEAK_FLOPS = {
    **{"H100 PCIe": 756e12, "H100 NVL": 835e12, "H200 NVL": 835e12},
    **{"H100": 989e12, "H200": 989e12, "A100": 312e12},
}
BATCH = 32
LEAST_SECONDS = 20.0  # that must be left for a section to begin
RULES: dict[str, tuple[Any, Any]] = {
    "graddiff": (GA(), WeightedSum(forget_weight=1.0, retain_weight=1.0)),
    "npo": (NPO(), WeightedSum(forget_weight=1.0, retain_weight=1.0)),
    "blur-npo": (NPO(), Blur()),
}


@dataclass(frozen=True)
class Shape:
    """A Llama's sizes; ``tied``: its embeddings."""

    hidden: int
    feed_forward: int
    layers: int
    heads: int
    groups: int
    vocabulary: int
    tied: bool = False

    @property
    def config(self) -> dict[str, Any]:
        """A Hugging Face config."""
        return {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "hidden_size": self.hidden,
            "intermediate_size": self.feed_forward,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.groups,
            "head_dim": self.hidden // self.heads,
            "vocab_size": self.vocabulary,
            "max_position_embeddings": 2048,
            "rms_norm_eps": 1e-5,
            "rope_theta": 500000.0,
            "tie_word_embeddings": self.tied,
            "bos_token_id": 0,
            "eos_token_id": 1,
        }

    def flops(self, tokens: int, positions: int) -> float:
        """Of a training step over ``tokens``, with logits of ``positions``."""
        attention = 2 * self.hidden * (self.heads + self.groups) * (self.hidden // self.heads)
        layer = attention + 3 * self.hidden * self.feed_forward
        return 6.0 * (self.layers * layer * tokens + self.hidden * self.vocabulary * positions)


SHAPES = {
    "tiny": Shape(64, 128, 2, 4, 2, 519, tied=True),
    "1b": Shape(2048, 8192, 16, 32, 8, 128256, tied=True),
    "8b": Shape(4096, 14336, 32, 32, 8, 128256),
    "8b of 20 layers": Shape(4096, 14336, 20, 32, 8, 128256),
}


def peak_flops(gpu: str | None) -> float | None:
    """By the GPU's name; ``None`` for one that is not known."""
    return next((rate for name, rate in PEAK_FLOPS.items() if gpu and name in gpu), None)


class Data:
    """Forget and retain rows of every step, with the lengths of TOFU's forget10 under Llama 3's tokenizer."""

    def __init__(self, shape: Shape, steps: int, batch: int) -> None:
        from megatron_ext.data.collate import SequenceDataset

        self.batch = batch
        forget, retain = (self._sequences(shape.vocabulary, batch * steps, seed) for seed in (1, 2))
        self.forget = SequenceDataset([forget], np.full(len(forget), -500.0))
        self.retain = SequenceDataset([retain])

    @staticmethod
    def _sequences(vocabulary: int, count: int, seed: int) -> Sequences:
        rng = np.random.default_rng(seed)
        prompts = rng.normal(23, 7, count).round().clip(14, 69).astype(int)
        answers = rng.normal(42, 17, count).round().clip(8, 107).astype(int)
        rows = zip(prompts, answers, strict=True)
        return Sequences.pack([(rng.integers(2, vocabulary, size=p + a).tolist(), int(p)) for p, a in rows])

    def rows(self, step: int) -> range:
        return range(step * self.batch, (step + 1) * self.batch)

    def count(self, step: int) -> tuple[int, int]:
        """Tokens and labelled positions of a step."""
        rows = list(self.rows(step))
        both = (self.forget, self.retain)
        return tuple(  # type: ignore[return-value] # two
            sum(int(getattr(each, key)[rows].sum()) for each in both) for key in ("lengths", "label_counts")
        )


class Bench:
    """The ranks, the time that is left, and where results go."""

    def __init__(self, ranks: Ranks, out: Path, deadline: float) -> None:
        import torch

        self.ranks, self.device, self._out = ranks, ranks.device, out
        self._end = time.monotonic() + deadline
        self.complete = True  # until something is left out
        self.gpu = torch.cuda.get_device_name() if self.device.type == "cuda" else None
        self.peak_flops = peak_flops(self.gpu)
        out.parent.mkdir(parents=True, exist_ok=True)
        self.say("machine", gpu=self.gpu, torch=torch.__version__, cuda=torch.version.cuda)

    @property
    def left(self) -> float:
        return self._end - time.monotonic()

    def say(self, section: str, **row: Any) -> None:
        line = json.dumps({"section": section, **row, "left": round(self.left, 1)})
        print(line, flush=True)
        with self._out.open("a") as file:
            file.write(line + "\n")

    def leave_out(self, what: str) -> None:
        """Say what there was no time for."""
        self.complete = False
        self.say("deadline", left_out=what)

    def timed(self, function: Callable[[], Any], times: int) -> list[float]:
        """Seconds of each call, after one that is not timed."""
        seconds = []
        for _ in range(times + 1):
            start = time.perf_counter()
            function()
            self.synchronise()
            seconds.append(time.perf_counter() - start)
        return seconds[1:]

    def synchronise(self) -> None:
        import torch

        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def fresh(self) -> None:
        """Free what the last section held."""
        import torch

        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()

    def memory(self) -> dict[str, float]:
        """GiB since ``fresh``, of tensors and of the allocator."""
        import torch

        if self.device.type != "cuda":
            return {}
        peaks = torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved()
        return dict(zip(("peak_gib", "reserved_gib"), (round(peak / 2**30, 2) for peak in peaks), strict=True))

    def speed(self, shape: Shape, seconds: Sequence[float], counts: Sequence[tuple[int, int]]) -> dict[str, Any]:
        median = statistics.median(seconds)
        tokens, positions = (int(statistics.mean(column)) for column in zip(*counts, strict=True))
        found: dict[str, Any] = {
            "seconds": round(median, 5),
            "spread": [round(min(seconds), 5), round(max(seconds), 5)],
        }
        found["tokens_a_second"] = round(tokens / median)
        if self.peak_flops is not None:
            found["mfu"] = round(shape.flops(tokens, positions) / median / self.peak_flops, 4)
        return found | self.memory()

    def model(self, shape: Shape, training: bool) -> LanguageModel:
        """With random values of the usual size, made where they are used."""
        import torch

        from megatron_ext.model import build

        model = build.build(shape.config, self.ranks, training=Runtime() if training else None)
        generator = torch.Generator(self.device).manual_seed(0)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter.fill_(1.0) if "norm" in name else parameter.normal_(0, 0.02, generator=generator)
        return model


def attention(bench: Bench, shape: Shape) -> None:
    """The first call at each of several new lengths, forward and backward, with cuDNN's kernels and without."""
    import torch

    before = torch.backends.cuda.cudnn_sdp_enabled()
    size = shape.hidden // shape.heads
    for cudnn in (False, True):
        torch.backends.cuda.enable_cudnn_sdp(cudnn)
        first = []
        for length in (61, 67, 71, 73, 79):
            query = torch.randn(4, shape.heads, length, size, device=bench.device, dtype=bench.ranks.dtype)
            key = torch.randn(4, shape.groups, length, size, device=bench.device, dtype=bench.ranks.dtype)
            query.requires_grad_()
            bench.synchronise()
            start = time.perf_counter()
            attend = torch.nn.functional.scaled_dot_product_attention
            attend(query, key, key, is_causal=True, enable_gqa=True).sum().backward()
            bench.synchronise()
            first.append(round(time.perf_counter() - start, 4))
        bench.say("attention", cudnn=cudnn, first_call_at_each_length=first)
    torch.backends.cuda.enable_cudnn_sdp(before)


def rules(
    bench: Bench, name: str, micro_batch: int, optimizer: str, wanted: Sequence[str], steps: int, batch: int = BATCH
) -> None:
    """Steps of unlearning, rule by rule on the same model, and what BLUR does beside gradients."""
    from megatron_ext.training.loss_terms import LossTerm
    from megatron_ext.training.trainer import Trainer

    shape = SHAPES[name]
    spec = Optimizer.model_validate({"name": optimizer, "learning_rate": 1e-6})
    trainer = Trainer(bench.model(shape, training=True), bench.ranks, spec, micro_batch)
    data = Data(shape, steps + 1, batch)
    for number, rule in enumerate(wanted):
        if bench.left < LEAST_SECONDS:
            bench.leave_out(f"{', '.join(wanted[number:])} on {name}, micro-batches of {micro_batch}")
            return
        forget, update = RULES[rule]
        order = iter(range(steps + 1))

        def step(order: Iterator[int] = order, forget: Any = forget, update: Any = update) -> None:
            rows = data.rows(next(order))
            terms = [
                LossTerm("forget_loss", forget, data.forget, rows),
                LossTerm("retain_loss", NLL(), data.retain, rows),
            ]
            trainer.step(terms, update, 1e-6)

        seconds = bench.timed(step, steps)
        found = bench.speed(shape, seconds, [data.count(i) for i in range(1, steps + 1)])
        bench.say("rules", shape=name, rule=rule, micro_batch=micro_batch, optimizer=optimizer, **found)
    if "blur-npo" in wanted:
        _space(bench, name, trainer.accumulator.space)


def _space(bench: Bench, name: str, space: Any) -> None:
    """The two passes over gradients that BLUR adds."""
    other = space.copy()
    elements = sum(piece.numel() for piece in space.held)
    calls: dict[str, Callable[[], Any]] = {
        "products": lambda: space.products([other, space.held]),
        "combine": lambda: space.combine(0.999, other, 0.5),
    }
    for what, call in calls.items():
        seconds = statistics.median(bench.timed(call, 3))
        rate = round(8 * elements / seconds / 1e9, 1)  # of reading both vectors once
        bench.say(
            "vectors", shape=name, what=what, elements=elements, seconds=round(seconds, 5), gigabytes_a_second=rate
        )


def transformers_loop(bench: Bench, name: str, micro_batch: int, steps: int, batch: int = BATCH) -> None:
    """NPO as a script would write it: a resident reference model, logits everywhere, rows in their order, and bf16
    weights without an fp32 copy, which our run has: equal rates are not equal runs."""
    import torch
    import transformers

    shape, data = SHAPES[name], Data(SHAPES[name], steps + 1, batch)
    config = transformers.LlamaConfig(**shape.config, attn_implementation="sdpa", use_cache=False)
    with torch.device(bench.device):
        model = transformers.LlamaForCausalLM(config).to(bench.ranks.dtype).train()
    reference = copy.deepcopy(model).eval().requires_grad_(False)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6, fused=True)
    order = iter(range(steps + 1))

    def step() -> None:
        rows = data.rows(next(order))
        labels = int(data.retain.label_counts[list(rows)].sum())
        for given in _padded(data.forget, rows, micro_batch, bench.device):
            with torch.no_grad():
                before = _log_probs(reference, *given).sum(dim=1)
            ratio = _log_probs(model, *given).sum(dim=1) - before
            (20 * torch.nn.functional.softplus(0.1 * ratio)).sum().div(batch).backward()
        for given in _padded(data.retain, rows, micro_batch, bench.device):
            (-_log_probs(model, *given).sum() / labels).backward()
        optimizer.step()
        optimizer.zero_grad()

    seconds = bench.timed(step, steps)
    counts = [data.count(i) for i in range(1, steps + 1)]
    found = bench.speed(shape, seconds, [(tokens, tokens) for tokens, _ in counts])
    bench.say("transformers", shape=name, micro_batch=micro_batch, **found)


def _padded(data: SequenceDataset, rows: range, size: int, device: Any) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Token ids, attention mask and labels, int64 ``[b, s]``, of each micro-batch."""
    import torch
    from torch.nn.utils.rnn import pad_sequence

    for start in range(rows.start, rows.stop, size):
        ids, labels = [], []
        for row in range(start, min(start + size, rows.stop)):
            tokens, prompt = data.row(row)
            ids.append(torch.from_numpy(tokens).long())
            labels.append(torch.cat([torch.full((prompt,), -100), ids[-1][prompt:]]))
        mask = [torch.ones_like(tokens) for tokens in ids]
        padded = pad_sequence(ids, True), pad_sequence(mask, True), pad_sequence(labels, True, -100)
        yield tuple(each.to(device) for each in padded)  # type: ignore[misc] # three


def _log_probs(model: Any, ids: Tensor, mask: Tensor, labels: Tensor) -> Tensor:
    """``[b, s - 1]``: each label's log-probability, 0 where there is none."""
    from torch.nn.functional import cross_entropy

    logits = model(input_ids=ids, attention_mask=mask).logits[:, :-1]
    nll = cross_entropy(logits.float().flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100, reduction="none")
    return -nll.view(len(ids), -1)


def generation(bench: Bench, name: str, rows: int, new: int) -> None:
    """Greedy answers without an end, token by token, from prompts of TOFU's lengths."""
    from megatron_ext.inference.generation import GenerateRequest, generate
    from perf.common import without_guesses

    shape = SHAPES[name]
    model, rng = bench.model(shape, training=False), np.random.default_rng(0)
    prompts = [rng.integers(2, shape.vocabulary, size=int(rng.integers(14, 40))).tolist() for _ in range(rows)]

    def answer() -> None:
        requests = [GenerateRequest(prompt, new) for prompt in prompts]
        generate(model, bench.ranks, requests, (), 1 << 18, progress=False)

    with without_guesses():
        (seconds,) = bench.timed(answer, 1)
    each = {"milliseconds_a_token": round(1e3 * seconds / new, 2), "tokens_a_second": round(rows * new / seconds)}
    bench.say("generation", shape=name, rows=rows, **each, **bench.memory())


def plan(bench: Bench, tiny: bool) -> list[Callable[[], None]]:
    """The sections, what matters most first."""
    three = list(RULES)
    if tiny:
        return [
            lambda: attention(bench, SHAPES["tiny"]),
            lambda: rules(bench, "tiny", 2, "adamw", three, steps=1, batch=4),
            lambda: transformers_loop(bench, "tiny", 2, steps=1, batch=4),
            lambda: generation(bench, "tiny", rows=4, new=4),
            lambda: rules(bench, "tiny", 4, "sgd", ["npo"], steps=1, batch=4),
        ]
    return [
        lambda: attention(bench, SHAPES["1b"]),
        lambda: rules(bench, "1b", 4, "adamw", three, steps=4),
        lambda: rules(bench, "1b", 32, "adamw", three, steps=4),
        lambda: transformers_loop(bench, "1b", 4, steps=4),
        lambda: transformers_loop(bench, "1b", 32, steps=4),
        lambda: generation(bench, "1b", rows=64, new=40),
        lambda: rules(bench, "8b", 16, "sgd", three, steps=3),
        lambda: transformers_loop(bench, "8b", 16, steps=3),
        lambda: rules(bench, "8b of 20 layers", 16, "adamw", three, steps=3),
        lambda: rules(bench, "8b", 4, "sgd", ["npo"], steps=2),
        lambda: generation(bench, "8b", rows=64, new=40),
    ]


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m perf.gpu", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--tiny", action="store_true", help="a shape that means nothing, to see that all of it runs")
    parser.add_argument("--out", type=Path, default=Path("results/gpu-proof/gpu.jsonl"))
    parser.add_argument("--deadline", type=float, default=300.0, help="seconds (default: %(default)s)")
    given = parser.parse_args(argv)
    precision = "bf16" if given.device == "cuda" else "fp32"  # bf16 on a CPU is slow, and proves nothing here
    failed = 0
    with process_groups.start(Runtime.model_validate({"device": given.device, "precision": precision})) as ranks:
        bench = Bench(ranks, given.out, given.deadline)
        sections = plan(bench, given.tiny)
        for number, section in enumerate(sections):
            if bench.left < LEAST_SECONDS:
                bench.leave_out(f"the last {len(sections) - number} of {len(sections)} sections")
                break
            bench.fresh()
            try:
                section()
            except Exception as error:  # out of memory, for one: the next sections need not suffer
                failed += 1
                bench.say("failed", number=number, error=f"{type(error).__name__}: {error}"[:600])
    return 0 if bench.complete and not failed else 1


if __name__ == "__main__":
    raise SystemExit(main())
