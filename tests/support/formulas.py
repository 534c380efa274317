"""Every loss once more, from the papers, in plain torch on one process.

Nothing here comes from ``megatron_ext``: a model is transformers' own, in fp64, a loss is written over whole logits of
one sequence after the other, a gradient is autograd's. ``LOSSES`` holds one formula for each name that a method's file
can use. Settings are a method's own, as plain dictionaries with every value filled in.

Every loss is to be minimised. ``rows`` are ``(token ids, prompt length)``; labelled are the tokens after the prompt.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

Rows = list[tuple[list[int], int]]
Settings = Mapping[str, Any]


@lru_cache
def _read(folder: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64, attn_implementation="eager").eval()


class Model:
    """A causal language model in fp64 whose weights can be moved, and a vector space of its trained tensors."""

    def __init__(self, folder: Path, trained: Callable[[str], bool] = lambda name: True) -> None:
        self.lm = copy.deepcopy(_read(folder))
        self.tensors = {name: p for name, p in self.lm.named_parameters() if trained(name)}
        for name, p in self.lm.named_parameters():
            p.requires_grad_(name in self.tensors)

    def _read(self, rows: Rows) -> Any:
        """Rows padded on the right, which no earlier position sees."""
        width = max(len(ids) for ids, _ in rows)
        ids = torch.tensor([ids + [0] * (width - len(ids)) for ids, _ in rows])
        return self.lm(ids, output_hidden_states=True, use_cache=False)

    def logits(self, rows: Rows) -> list[Tensor]:
        """``[tokens, vocabulary]`` of each row."""
        return [z[: len(ids)] for z, (ids, _) in zip(self._read(rows).logits, rows, strict=True)]

    def hidden(self, rows: Rows, layer: int) -> list[Tensor]:
        """``[tokens, hidden]`` of each row: what decoder block ``layer`` puts out."""
        assert layer + 1 < self.lm.config.num_hidden_layers  # the last block's is normed in this list
        states = self._read(rows).hidden_states[layer + 1]
        return [h[: len(ids)] for h, (ids, _) in zip(states, rows, strict=True)]

    def weights(self) -> Tensor:
        return torch.cat([p.detach().flatten() for p in self.tensors.values()])

    def gradient(self, loss: Tensor, graph: bool = False) -> Tensor:
        found = torch.autograd.grad(loss, list(self.tensors.values()), create_graph=graph, materialize_grads=True)
        return torch.cat([g.flatten() for g in found])

    @torch.no_grad()
    def move(self, displacement: Tensor) -> None:
        for p, d in zip(self.tensors.values(), self.split(displacement).values(), strict=True):
            p.add_(d)

    def split(self, vector: Tensor) -> dict[str, Tensor]:
        pieces = vector.split([p.numel() for p in self.tensors.values()])
        return {name: v.view_as(p) for (name, p), v in zip(self.tensors.items(), pieces, strict=True)}

    def moved(self, start: Tensor, ends: float) -> dict[str, Tensor]:
        """How far each tensor of the checkpoint is from where it was at ``start``, ``ends`` times."""
        return self.split(ends * (self.weights() - start))


class Adapted(Model):
    """A model whose own tensors stay: LoRA (arXiv 2106.09685) adds ``scale * B A x`` to what a matrix makes of x.

    ``first``: by a matrix's name the ``A`` that it begins with; ``B`` begins as zero.
    """

    def __init__(self, folder: Path, first: Mapping[str, Tensor], scale: float) -> None:
        super().__init__(folder, lambda name: False)
        self.scale = scale
        for name, a in first.items():
            linear = self.lm.get_submodule(name)
            A = a.double().requires_grad_()
            B = torch.zeros(linear.out_features, len(a), dtype=torch.float64, requires_grad=True)
            self.tensors |= {f"{name}.A": A, f"{name}.B": B}
            linear.register_forward_hook(lambda _, given, out, A=A, B=B: out + scale * (given[0] @ A.T) @ B.T)

    def moved(self, start: Tensor, ends: float) -> dict[str, Tensor]:
        names = [name.removesuffix(".A") for name in self.tensors if name.endswith(".A")]
        pairs = {name: (self.tensors[f"{name}.B"], self.tensors[f"{name}.A"]) for name in names}
        return {f"{name}.weight": ends * self.scale * (B @ A).detach() for name, (B, A) in pairs.items()}


@dataclass
class Batch:
    """What a loss is given beside its settings: ``theta``, the model; ``origin``, the model before unlearning."""

    theta: Model
    origin: Model
    rows: Rows
    alternatives: Rows
    layer: int
    steering: Tensor | None  # RMU's vector, of length 1
    topic: str


# Losses.


def predictions(model: Model, rows: Rows) -> list[tuple[Tensor, Tensor]]:
    """Of each row, the logits that predict its labelled tokens, ``[labels, vocabulary]``, and those tokens."""
    return [
        (z[prompt - 1 : -1], torch.tensor(ids[prompt:]))
        for z, (ids, prompt) in zip(model.logits(rows), rows, strict=True)
    ]


def places(model: Model, rows: Rows, positions: str) -> Tensor:
    """Logits ``[n, vocabulary]``: those that predict a labelled token, or all."""
    return torch.cat([z for z, _ in predictions(model, rows)] if positions == "labelled" else model.logits(rows))


def token_log_probs(model: Model, rows: Rows) -> list[Tensor]:
    return [z.log_softmax(-1)[torch.arange(len(y)), y] for z, y in predictions(model, rows)]


def sequence_log_probs(model: Model, rows: Rows) -> Tensor:
    return torch.stack([logp.sum() for logp in token_log_probs(model, rows)])


def nll(b: Batch, c: Settings) -> Tensor:
    return -torch.cat(token_log_probs(b.theta, b.rows)).mean()


def ga(b: Batch, c: Settings) -> Tensor:
    """Gradient ascent on the tokens' mean cross entropy: TOFU (arXiv 2401.06121), BLUR (arXiv 2506.08164) eq. 3."""
    return -nll(b, c)


def ratios(b: Batch, rows: Rows) -> Tensor:
    """log pi_theta(y | x) / pi_origin(y | x) of each sequence."""
    with torch.no_grad():
        reference = sequence_log_probs(b.origin, rows)
    return sequence_log_probs(b.theta, rows) - reference


def npo(b: Batch, c: Settings) -> Tensor:
    """NPO (arXiv 2404.05868) eq. 3: 2/beta E log(1 + (pi_theta / pi_ref)^beta)."""
    return (2 / c["beta"] * torch.log(1 + torch.exp(c["beta"] * ratios(b, b.rows)))).mean()


def npo_muse_logits(b: Batch, c: Settings) -> Tensor:
    """MUSE's code: NPO's formula on each logit, without labels, at every position."""
    z = places(b.theta, b.rows, c["positions"])
    with torch.no_grad():
        reference = places(b.origin, b.rows, c["positions"])
    return 2 / c["beta"] * -F.logsigmoid(c["beta"] * (reference - z)).mean()


def simnpo(b: Batch, c: Settings) -> Tensor:
    """SimNPO (arXiv 2410.07163): -2/beta E log sigmoid(-beta/|y| log pi(y|x) - beta delta)."""
    costs = torch.stack([-logp.mean() for logp in token_log_probs(b.theta, b.rows)])
    return (-2 / c["beta"] * F.logsigmoid(c["beta"] * (costs - c["delta"]))).mean()


def simnpo_muse_logits(b: Batch, c: Settings) -> Tensor:
    """SimNPO's code for MUSE: its formula on each logit, without labels and lengths, at every position."""
    z = places(b.theta, b.rows, "all")
    return 2 / c["beta"] * -F.logsigmoid(c["beta"] * (-z - c["delta"])).mean()


def dpo(b: Batch, c: Settings) -> Tensor:
    """DPO (arXiv 2305.18290) eq. 7 with the alternative as the winner, and open-unlearning's factor 2/beta."""
    margin = ratios(b, b.alternatives) - ratios(b, b.rows)
    return (-2 / c["beta"] * F.logsigmoid(c["beta"] * margin)).mean()


def undial(b: Batch, c: Settings) -> Tensor:
    """UNDIAL (arXiv 2402.10052): cross entropy with the original model, its labelled logit beta lower."""
    costs = []
    for (z, y), (reference, _) in zip(predictions(b.theta, b.rows), predictions(b.origin, b.rows), strict=True):
        teacher = (reference - c["beta"] * F.one_hot(y, z.size(-1))).softmax(-1).detach()
        costs.append(-(teacher * z.log_softmax(-1)).sum(-1))
    return torch.cat(costs).mean()


def wga(b: Batch, c: Settings) -> Tensor:
    """WGA (arXiv 2502.19301): ascent on each token's cross entropy, weighted by its probability to the power beta."""
    logp = torch.cat(token_log_probs(b.theta, b.rows))
    return (logp.exp().detach() ** c["beta"] * logp).mean()


def satimp(b: Batch, c: Settings) -> Tensor:
    """SatImp (arXiv 2505.11953): weights p^beta1 (1 - p)^beta2."""
    logp = torch.cat(token_log_probs(b.theta, b.rows))
    p = logp.exp().detach()
    return (p ** c["beta1"] * (1 - p) ** c["beta2"] * logp).mean()


def ce_u(b: Batch, c: Settings) -> Tensor:
    """CE-U (arXiv 2503.01224): cross entropy with the model's own distribution less the label; no first token."""
    costs = []
    for z, y in predictions(b.theta, b.rows):
        teacher = z.detach().clone()
        teacher[torch.arange(len(y)), y] = -math.inf
        costs.append(-(teacher.softmax(-1) * z.log_softmax(-1)).sum(-1)[1:])
    return torch.cat(costs).mean()


def ihl(b: Batch, c: Settings) -> Tensor:
    """LoKU's inverted hinge loss (arXiv 2408.06621): 1 + p(y) - max_{v != y} p(v)."""
    costs = []
    for z, y in predictions(b.theta, b.rows):
        p, label = z.softmax(-1), F.one_hot(y, z.size(-1)).bool()
        costs.append(1 + p[label] - p.masked_fill(label, 0.0).max(-1).values)
    return torch.cat(costs).mean()


def me(b: Batch, c: Settings) -> Tensor:
    """ME (arXiv 2410.08109): KL(uniform || p)."""
    z = torch.cat([z for z, _ in predictions(b.theta, b.rows)])
    return -(math.log(z.size(-1)) + z.log_softmax(-1).mean(-1)).mean()


def unilogit(b: Batch, c: Settings) -> Tensor:
    """Unilogit (arXiv 2505.06027): distillation from the model's own logits, the label's such that it is uniform."""
    costs = []
    for z, y in predictions(b.theta, b.rows):
        label = F.one_hot(y, z.size(-1)).bool()
        others = z.detach().masked_fill(label, -math.inf).logsumexp(-1, keepdim=True)
        q = torch.where(label, others - math.log(z.size(-1) - 1), z.detach()).log_softmax(-1)
        p = z.log_softmax(-1)
        costs.append((p.exp() * (p - q) if c["divergence"] == "reverse" else q.exp() * (q - p)).sum(-1))
    return torch.cat(costs).mean()


def logit_margin(b: Batch, c: Settings) -> Tensor:
    """PDU (arXiv 2506.05314): E 1/|y| sum_t (max_k z - mean_k z)^2; 'labelled': open-unlearning's unshifted mask."""
    squares = []
    for z, (_, prompt) in zip(b.theta.logits(b.rows), b.rows, strict=True):
        z = z[prompt - 1 : -1] if c["mask"] == "predicting" else z[prompt:]
        squares.append((z.max(-1).values - z.mean(-1)) ** 2)
    return averaged(squares, c["reduction"])


def averaged(values: list[Tensor], reduction: str) -> Tensor:
    """``sums``: open-unlearning's code, ``[b]`` divided by ``[b, 1]`` and averaged (src/trainer/unlearn/rmu.py)."""
    if reduction == "sums":
        lengths = torch.tensor([[float(len(v))] for v in values], dtype=torch.float64)
        return (torch.stack([v.sum() for v in values]) / lengths).mean()
    return torch.cat(values).mean() if reduction == "token" else torch.stack([v.mean() for v in values]).mean()


def kl(b: Batch, c: Settings) -> Tensor:
    """TOFU's other retain loss (arXiv 2401.06121): KL(p_origin || p_theta)."""
    new = places(b.theta, b.rows, c["positions"]).log_softmax(-1)
    with torch.no_grad():
        old = places(b.origin, b.rows, c["positions"]).log_softmax(-1)
    return (old.exp() * (old - new)).sum(-1).mean()


def rmu(b: Batch, c: Settings) -> Tensor:
    """RMU (arXiv 2403.03218): mean square distance, over the components too, to a random vector of length c."""
    states = compared(b.theta.hidden(b.rows, b.layer), b.rows, c["positions"])
    wanted = of_topic(c["steering"], b) * b.steering
    return averaged([((h - wanted) ** 2).mean(-1) for h in states], c["reduction"])


def adaptive_rmu(b: Batch, c: Settings) -> Tensor:
    """Adaptive RMU (arXiv 2408.06223): the vector is ``scale`` mean norms of the original hidden states long, here with
    the mean over a sequence."""
    new = compared(b.theta.hidden(b.rows, b.layer), b.rows, c["positions"])
    with torch.no_grad():
        old = compared(b.origin.hidden(b.rows, b.layer), b.rows, c["positions"])
    lengths = [of_topic(c["scale"], b) * g.norm(dim=-1).mean() for g in old]
    costs = [((h - length * b.steering) ** 2).mean(-1) for h, length in zip(new, lengths, strict=True)]
    return averaged(costs, c["reduction"])


def of_topic(given: Any, b: Batch) -> float:
    return given[b.topic] if isinstance(given, Mapping) else given


def rmu_retain(b: Batch, c: Settings) -> Tensor:
    """RMU's retain loss: alpha times the mean square distance to the original model's hidden states."""
    new = compared(b.theta.hidden(b.rows, b.layer), b.rows, c["positions"])
    with torch.no_grad():
        old = compared(b.origin.hidden(b.rows, b.layer), b.rows, c["positions"])
    return of_topic(c["weight"], b) * averaged(
        [((h - g) ** 2).mean(-1) for h, g in zip(new, old, strict=True)], c["reduction"]
    )


def compared(states: list[Tensor], rows: Rows, positions: str) -> list[Tensor]:
    return [h if positions == "all" else h[prompt:] for h, (_, prompt) in zip(states, rows, strict=True)]


LOSSES: dict[str, Callable[[Batch, Settings], Tensor]] = {
    "adaptive-rmu": adaptive_rmu,
    "ce-u": ce_u,
    "dpo": dpo,
    "ga": ga,
    "ihl": ihl,
    "kl": kl,
    "logit-margin": logit_margin,
    "me": me,
    "nll": nll,
    "npo": npo,
    "npo-muse-logits": npo_muse_logits,
    "rmu": rmu,
    "rmu-retain": rmu_retain,
    "satimp": satimp,
    "simnpo": simnpo,
    "simnpo-muse-logits": simnpo_muse_logits,
    "undial": undial,
    "unilogit": unilogit,
    "wga": wga,
}
