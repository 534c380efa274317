"""What a model's Hugging Face config says about size, and whether a layout can hold it; no weights are looked at."""

from __future__ import annotations

import math
import os
import shutil
import subprocess
from dataclasses import dataclass
from functools import cache
from typing import Any

from megatron_ext.config import Layout, Runtime, even_split
from megatron_ext.model.families import Experts, Latent, family_of
from pipeline.config.site import Site

PROCESSES_PER_CORE = 4


@dataclass(frozen=True)
class Shape:
    """The sizes that decide a layout and the number of parameters."""

    hidden: int
    layers: int
    heads: int
    key_value_heads: int
    head_dim: int
    ffn: int
    dense_ffn: int
    vocabulary: int
    context: int
    tied: bool
    qkv_bias: bool
    output_bias: bool
    sinks: bool
    qk_norm: bool
    post_norms: bool
    fused: bool
    torch_only: str
    latent: Latent | None
    experts: Experts | None

    @classmethod
    def of(cls, config: dict[str, Any]) -> Shape:
        """From a ``config.json``; raises ``ValueError`` for a family that is not supported or a key that is missing."""
        family = family_of(config)
        experts, latent = family.experts(config), family.latent(config)
        heads = config["num_attention_heads"]
        size = latent.plain + latent.rotary if latent else config.get("head_dim") or config["hidden_size"] // heads
        return cls(
            hidden=config["hidden_size"],
            layers=config["num_hidden_layers"],
            heads=heads,
            key_value_heads=config.get("num_key_value_heads") or heads,
            head_dim=size,
            ffn=experts.width if experts else config["intermediate_size"],
            dense_ffn=config["intermediate_size"],
            vocabulary=config["vocab_size"],
            context=family.context(config),
            tied=family.is_tied(config),
            qkv_bias=family.has_qkv_bias(config),
            output_bias=family.output_bias,
            sinks=family.sinks,
            qk_norm=family.qk_norm,
            post_norms=family.post_norms,
            fused=family.fused,
            torch_only=family.torch_only,
            latent=latent,
            experts=experts,
        )

    def experts_of(self, layer: int) -> Experts | None:
        """The experts of a layer, counted from 0; None where it has one MLP."""
        return self.experts if self.experts and layer >= self.experts.first else None

    @property
    def attended(self) -> int:
        """Numbers that all heads of a layer give."""
        return self.heads * (self.latent.value if self.latent else self.head_dim)

    def matrices(self, layer: int, tensor: int = 1) -> dict[str, int]:
        """Parameters of each matrix of a layer that a rank of ``tensor`` has, by the names of
        ``TrainableLayers.target_modules``; of latent attention, what makes queries, keys and values is no such matrix.
        """
        queries, keys = self.heads * self.head_dim, self.key_value_heads * self.head_dim
        experts = self.experts_of(layer)
        widths = experts.count * experts.width + experts.shared if experts else self.dense_ffn
        return {
            "qkv_proj": 0 if self.latent else self.hidden * (queries + 2 * keys) // tensor,
            "o_proj": self.attended * self.hidden // tensor,
            "gate_up_proj": 2 * self.hidden * widths // tensor,
            "down_proj": self.hidden * widths // tensor,
        }

    def others(self, layer: int, tensor: int = 1) -> list[int]:
        """Sizes of a layer's other parameters that a rank of ``tensor`` has."""
        queries, keys = self.heads * self.head_dim, self.key_value_heads * self.head_dim
        found = [self.hidden] * (4 if self.post_norms else 2) + [(queries + 2 * keys) // tensor] * self.qkv_bias
        found += [self.hidden] * self.output_bias + [self.heads // tensor] * self.sinks
        found += [self.head_dim, self.head_dim] * self.qk_norm
        if self.latent:
            short, head = self.latent.rank, self.latent.plain + self.latent.value
            found += [queries * self.hidden // tensor, (short + self.latent.rotary) * self.hidden, short]
            found += [self.heads * head * short // tensor]
        experts = self.experts_of(layer)
        if experts:
            found += [experts.count * self.hidden]  # the router, on every rank
        if experts and experts.stacked:
            found += [experts.count, experts.count * (2 * experts.width + self.hidden) // tensor]
        return found

    def layer_parameters(self, layer: int) -> int:
        """Parameters of a layer."""
        return sum(self.matrices(layer).values()) + sum(self.others(layer))

    @property
    def embedding_parameters(self) -> int:
        return self.vocabulary * self.hidden

    @property
    def parameters(self) -> int:
        embeddings = self.embedding_parameters * (1 if self.tied else 2)
        return embeddings + sum(map(self.layer_parameters, range(self.layers))) + self.hidden


def layout_problems(layout: Layout, shape: Shape) -> list[str]:
    """Why a model of this shape cannot be laid out so; empty where it can.

    The vocabulary never is a reason: it is padded to a multiple of the tensor-parallel ranks.
    """
    found = []
    for key, ranks, what, size in (
        ("tensor", layout.tensor, "attention heads", shape.heads),
        ("tensor", layout.tensor, "key-value heads", shape.key_value_heads),
        ("tensor", layout.tensor // layout.expert, "feed-forward width", shape.ffn),
        ("tensor", layout.tensor, "feed-forward width of what is no expert", _unshared(shape)),
        ("expert", layout.expert, "experts of a layer", shape.experts.count if shape.experts else 1),
    ):
        if size % ranks:
            found.append(f"{key}: {ranks} does not divide the model's {size} ({what})")
    if layout.pipeline_split is None:
        if layout.pipeline > shape.layers:
            found.append(f"pipeline: {layout.pipeline} stages, but the model has only {shape.layers} layers")
        elif shape.layers % layout.pipeline:
            split = even_split(shape.layers, layout.pipeline)
            found.append(
                f"pipeline: {layout.pipeline} does not divide the model's {shape.layers} layers; "
                f"say how to split them, for example pipeline_split: {split}"
            )
    else:
        if len(layout.pipeline_split) != layout.pipeline:
            found.append(
                f"pipeline_split: {layout.pipeline_split} has {len(layout.pipeline_split)} entries; "
                f"pipeline: {layout.pipeline} needs {layout.pipeline}"
            )
        if sum(layout.pipeline_split) != shape.layers:
            found.append(
                f"pipeline_split: {layout.pipeline_split} sums to {sum(layout.pipeline_split)}; "
                f"the model has {shape.layers} layers"
            )
    return found


def _unshared(shape: Shape) -> int:
    """The largest number that divides every feed-forward width that all ranks share, experts aside."""
    experts = shape.experts
    if experts is None:
        return shape.ffn
    return math.gcd(experts.shared, shape.dense_ffn if experts.first else 0, shape.hidden if experts.stacked else 0)


def visible_gpus() -> int | None:
    """GPUs that a process started here would see; ``None`` where that cannot be told (no NVIDIA driver)."""
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is not None:
        return len([name for name in chosen.split(",") if name.strip() not in ("", "-1")])
    return _listed_gpus()


@cache
def _listed_gpus() -> int | None:
    if shutil.which("nvidia-smi") is None:
        return None
    try:
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=2, check=False)
    except subprocess.TimeoutExpired:
        return None
    return sum(line.startswith("GPU ") for line in listed.stdout.splitlines())


def on_gpus(device: str, site: Site | None = None) -> bool:
    """Whether steps of this device run on GPUs: those told to, and those that may where there are some: on the nodes of
    ``site``, or on this machine."""
    return device == "cuda" or (device == "auto" and bool(site.gpus_per_node if site else visible_gpus()))


def number_of(count: int, noun: str) -> str:
    """``1 rank``, ``2 ranks``."""
    return f"{count} {noun}{'' if count == 1 else 's'}"


def device_problem(layout: Layout, device: str) -> str | None:
    """Why this machine cannot start the layout's ranks, or ``None``. Ranks on CPU are processes, a few to a core."""
    if on_gpus(device):
        gpus = visible_gpus()
        # None at all: planned here, to run elsewhere.
        if gpus and layout.ranks > gpus:
            return f"{number_of(layout.ranks, 'rank')}, but this machine shows {number_of(gpus, 'GPU')}"
        return None
    limit = PROCESSES_PER_CORE * (os.cpu_count() or 1)
    if layout.ranks > limit:
        ranks = number_of(layout.ranks, "rank")
        return f"{ranks} are {layout.ranks} processes here; at most {PROCESSES_PER_CORE} a core, {limit}"
    return None


@dataclass(frozen=True)
class Nodes:
    """Where a step's ranks go on a cluster: equally many on each node."""

    count: int
    ranks: int
    gpus: int

    @property
    def total(self) -> int:
        return self.count * self.ranks

    def __str__(self) -> str:
        each = number_of(self.gpus, "GPU") if self.gpus else number_of(self.ranks, "rank")
        return f"{self.count} x {each}"


def spread(runtime: Runtime, site: Site) -> Nodes:
    """A layout over as few nodes as hold it: a GPU a rank, or ``runtime.threads`` cores a rank.

    Where a site states no cores, ranks on CPUs share one node. Raises ``ValueError`` where ranks cannot be spread
    evenly, with a message whose first word is the key at fault: ``layout``, ``threads`` or ``device``.
    """
    ranks, threads, gpus = runtime.layout.ranks, runtime.threads, on_gpus(runtime.device, site)
    if gpus and not site.gpus_per_node:
        raise ValueError("device: 'cuda', but gpus_per_node is 0; allowed: 'auto', 'cpu'")
    room = ranks
    if site.cpus_per_node is not None:
        room = site.cpus_per_node // threads
        if not room:
            raise ValueError(f"threads: {threads} of each rank, but cpus_per_node is {site.cpus_per_node}")
    if gpus:
        room = site.gpus_per_node
    count = -(-ranks // room)
    if ranks % count:
        what = f"gpus_per_node is {room}" if gpus else f"cpus_per_node leaves room for {number_of(room, 'rank')} a node"
        right = [n for n in range(1, ranks + room) if n % -(-n // room) == 0]
        below, above = max(n for n in right if n < ranks), min(n for n in right if n > ranks)
        raise ValueError(
            f"layout: {ranks} ranks need {count} nodes, and do not divide evenly over them ({what}); "
            f"the nearest numbers of ranks that do: {below}, {above}"
        )
    each = ranks // count
    if gpus and site.cpus_per_node is not None and each * threads > site.cpus_per_node:
        raise ValueError(
            f"threads: {threads} of each of a node's {number_of(each, 'rank')}, but cpus_per_node is "
            f"{site.cpus_per_node}; allowed: at most {site.cpus_per_node // each}"
        )
    return Nodes(count, each, each if gpus else 0)
