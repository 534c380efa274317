"""What a model family is: the ways in which its decoder differs from Llama's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar


@dataclass(frozen=True)
class AttentionKind:
    """How a model's attention differs from Llama's.

    Attributes:
        scale: Of the products of queries and keys; None for ``1 / sqrt(head_dim)``.
        cap: The scaled products ``x`` become ``cap * tanh(x / cap)``; None where they stay.
        windows: Of each layer how many of the newest positions, its own among them, a position sees; None for all.
            Empty where no layer has a window.
        local_theta: Base of the rotary embedding in layers with a window; None where it is that of the others.
    """

    scale: float | None = None
    cap: float | None = None
    windows: tuple[int | None, ...] = ()
    local_theta: float | None = None


@dataclass(frozen=True)
class Latent:
    """Attention whose keys and values are made from one short vector of each position (arXiv 2405.04434, section 2.1).

    Attributes:
        rank: Length of that vector.
        plain: Of a head's queries and keys how many numbers are not rotated.
        rotary: How many are; those of keys are the same for every head.
        value: Of a head's values how many numbers there are.
    """

    rank: int
    plain: int
    rotary: int
    value: int


@dataclass(frozen=True)
class Experts:
    """The experts of a layer, and how positions choose among them.

    Attributes:
        count: How many experts a layer has.
        chosen: How many of them a position goes to: those with the largest probabilities.
        width: Of an expert's MLP.
        normalised: Whether the chosen probabilities are made to sum to 1.
        scale: What they are multiplied by.
        first: How many layers, from the first, have one MLP in the place of experts.
        shared: Width of an MLP that every position goes to besides; 0 without.
        precise: Whether the router computes in fp32.
        stacked: Whether a tensor has all experts, inputs before outputs, gate and up in turn, with a second one of
            biases; the router has a bias too. ``gate`` and ``down`` are then the tensors, and there is no ``up``.
        clamp: ``(a, limit)``, where an expert computes ``(up + 1) * gate * sigmoid(a * gate)`` of values within the
            limit; None for ``up * silu(gate)``.
        router: A layer's tensor of the router.
        gate: A layer's tensor of the expert with the number in braces.
        up: As ``gate``.
        down: As ``gate``.
    """

    count: int
    chosen: int
    width: int
    normalised: bool
    router: str
    gate: str
    up: str
    down: str
    scale: float = 1.0
    first: int = 0
    shared: int = 0
    precise: bool = False
    stacked: bool = False
    clamp: tuple[float, float] | None = None


class Family:
    """A family of decoder-only models with RMSNorm, gated MLPs, rotary embeddings and grouped-query attention.

    Tensor names are Llama's but where ``post_norms`` and ``fused`` say otherwise. Subclass in a new file of this
    package to add one; this module and its neighbours import no torch.

    Attributes:
        architectures: What ``architectures`` of a Hugging Face config says.
        qkv_bias: Queries, keys and values have a bias.
        output_bias: What attention gives has a bias.
        sinks: Each head has a learned product with a position that does not exist, which takes its share of attention.
        qk_norm: Each head's queries and keys are normed.
        defaults: What transformers takes for ``num_key_value_heads`` and ``head_dim`` where a config lacks them, if
            that follows from none of its other numbers.
        activation: Of the MLP, and the config's key for it.
        scalings: Kinds of scaling of the rotary embedding.
        tied: Whether output and input embedding are one where the config does not say.
        zero_centred_norms: A norm multiplies by 1 + weight.
        post_norms: What attention and MLP give is normed before it is added.
        scaled_embeddings: Embeddings are multiplied by ``sqrt(hidden_size)``.
        fused: A layer has one matrix for queries, keys and values and one for gate and up.
        torch_only: What of the model Transformer Engine's layers are not built with here; empty where nothing.
    """

    architectures: ClassVar[tuple[str, ...]] = ()
    qkv_bias: ClassVar[bool] = False
    output_bias: ClassVar[bool] = False
    sinks: ClassVar[bool] = False
    qk_norm: ClassVar[bool] = False
    defaults: ClassVar[Mapping[str, int]] = {}
    activation: ClassVar[tuple[str, str]] = ("hidden_act", "silu")
    scalings: ClassVar[tuple[str, ...]] = ("default", "linear", "llama3")
    tied: ClassVar[bool] = False
    zero_centred_norms: ClassVar[bool] = False
    post_norms: ClassVar[bool] = False
    scaled_embeddings: ClassVar[bool] = False
    fused: ClassVar[bool] = False
    torch_only: ClassVar[str] = ""

    @classmethod
    def check(cls, config: Mapping[str, Any]) -> None:
        """Raise ``ValueError`` for what this family alone has in its config and is wrong or not supported."""

    @classmethod
    def is_tied(cls, config: Mapping[str, Any]) -> bool:
        """Whether the output layer's weight is the embedding's."""
        given = config.get("tie_word_embeddings")
        return cls.tied if given is None else bool(given)

    @classmethod
    def attention(cls, config: Mapping[str, Any]) -> AttentionKind:
        """How the model's attention differs from Llama's."""
        return AttentionKind()

    @classmethod
    def latent(cls, config: Mapping[str, Any]) -> Latent | None:
        """Sizes of latent attention; None where keys and values are products of the hidden states."""
        return None

    @classmethod
    def experts(cls, config: Mapping[str, Any]) -> Experts | None:
        """The experts of a layer; None where every layer has one MLP."""
        return None

    @classmethod
    def rotary_size(cls, config: Mapping[str, Any]) -> int:
        """How many numbers of a head are rotated, from the first."""
        return int(config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"])

    @classmethod
    def rotary_gain(cls, config: Mapping[str, Any]) -> float:
        """What the rotated numbers of queries and of keys are multiplied by."""
        return 1.0

    @classmethod
    def logit_cap(cls, config: Mapping[str, Any]) -> float | None:
        """The bound that logits ``x`` get as ``cap * tanh(x / cap)``; None where they stay."""
        return None

    @classmethod
    def context(cls, config: Mapping[str, Any]) -> int:
        """The longest sequence that is computed here exactly as by the model's own attention."""
        return int(config["max_position_embeddings"])

    @classmethod
    def has_qkv_bias(cls, config: Mapping[str, Any]) -> bool:
        return cls.qkv_bias


def lacking(latent: Latent | None, modules: Sequence[str]) -> str | None:
    """Which of ``TrainableLayers.target_modules`` a layer lacks: a message that begins with the key, or None."""
    if latent is None or "qkv_proj" not in modules:
        return None
    return "target_modules: 'qkv_proj' is no matrix of latent attention; allowed: o_proj, gate_up_proj, down_proj"


ORIGINAL = "original_max_position_embeddings"
REQUIRED = (
    "model_type",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "vocab_size",
    "max_position_embeddings",
    "rms_norm_eps",
)


def rope_parameters(config: Mapping[str, Any]) -> dict[str, Any]:
    """``rope_theta`` and the scaling of a config, as written by transformers before and since version 5.

    Where layers with and without a window differ, those of the layers without. Of two original lengths the config's own
    goes before that of the scaling, as in transformers.
    """
    new = dict(config.get("rope_parameters") or {})
    new = dict(new.get("full_attention") or {}) if "full_attention" in new else new
    old = dict(config.get("rope_scaling") or {})
    merged = {"rope_theta": config.get("rope_theta", 10000.0), **old, **new}
    merged["rope_type"] = merged.get("rope_type") or merged.pop("type", None) or "default"
    if merged["rope_type"] in ("llama3", "yarn", "longrope") and ORIGINAL in config:
        merged[ORIGINAL] = config[ORIGINAL]
    return merged
