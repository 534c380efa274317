"""What a model's Hugging Face config says about size, and whether a layout can hold it; no weights are looked at."""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass
from functools import cache
from typing import Any

from megatron_ext.config import Layout, Runtime, even_split
from megatron_ext.model.families import Experts, family_of
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
    vocabulary: int
    context: int
    tied: bool
    qkv_bias: bool
    qk_norm: bool
    post_norms: bool
    fused: bool
    torch_only: str
    experts: Experts | None

    @classmethod
    def of(cls, config: dict[str, Any]) -> Shape:
        """From a ``config.json``; raises ``ValueError`` for a family that is not supported or a key that is missing."""
        family = family_of(config)
        experts = family.experts(config)
        heads = config["num_attention_heads"]
        return cls(
            hidden=config["hidden_size"],
            layers=config["num_hidden_layers"],
            heads=heads,
            key_value_heads=config.get("num_key_value_heads") or heads,
            head_dim=config.get("head_dim") or config["hidden_size"] // heads,
            ffn=experts.width if experts else config["intermediate_size"],
            vocabulary=config["vocab_size"],
            context=family.context(config),
            tied=family.is_tied(config),
            qkv_bias=family.has_qkv_bias(config),
            qk_norm=family.qk_norm,
            post_norms=family.post_norms,
            fused=family.fused,
            torch_only=family.torch_only,
            experts=experts,
        )

    @property
    def matrices(self) -> dict[str, int]:
        """Parameters of each matrix of a layer, by the names of ``TrainableLayers.target_modules``."""
        queries, keys = self.heads * self.head_dim, self.key_value_heads * self.head_dim
        copies = self.experts.count if self.experts else 1
        return {
            "qkv_proj": self.hidden * (queries + 2 * keys),
            "o_proj": queries * self.hidden,
            "gate_up_proj": 2 * self.hidden * self.ffn * copies,
            "down_proj": self.hidden * self.ffn * copies,
        }

    @property
    def layer_parameters(self) -> int:
        queries, keys = self.heads * self.head_dim, self.key_value_heads * self.head_dim
        biases = (queries + 2 * keys) * self.qkv_bias + 2 * self.head_dim * self.qk_norm
        router = self.experts.count * self.hidden if self.experts else 0
        return sum(self.matrices.values()) + router + biases + (4 if self.post_norms else 2) * self.hidden

    @property
    def embedding_parameters(self) -> int:
        return self.vocabulary * self.hidden

    @property
    def parameters(self) -> int:
        embeddings = self.embedding_parameters * (1 if self.tied else 2)
        return embeddings + self.layers * self.layer_parameters + self.hidden


def layout_problems(layout: Layout, shape: Shape) -> list[str]:
    """Why a model of this shape cannot be laid out so; empty where it can.

    The vocabulary never is a reason: it is padded to a multiple of the tensor-parallel ranks.
    """
    found = []
    for key, ranks, what, size in (
        ("tensor", layout.tensor, "attention heads", shape.heads),
        ("tensor", layout.tensor, "key-value heads", shape.key_value_heads),
        ("tensor", layout.tensor // layout.expert, "feed-forward width", shape.ffn),
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
