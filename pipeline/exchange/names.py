"""What open-unlearning calls our metrics, and in which of its logs they are."""

from __future__ import annotations

from dataclasses import dataclass

ATTACKS = ("loss", "zlib", "reference", "gradnorm", "min_k", "min_k_plus_plus")
PRIVACY = {
    "extraction_strength": "extraction_strength",
    "exact_memorisation": "exact_memorization",
    "privleak": "privleak",
    **{f"mia_{attack}": f"mia_{attack}" for attack in ATTACKS},
}
TOFU_SETS = {"forget": "forget", "retain": "retain", "real_authors": "ra", "world_facts": "wf"}
NORMALISED = ("real_authors", "world_facts")
# Set -> the log of its answers' ROUGE scores.
MUSE_ROUGE = {
    "verbmem": "forget_verbmem_ROUGE",
    "knowmem_forget": "forget_knowmem_ROUGE",
    "knowmem_retain": "retain_knowmem_ROUGE",
}


@dataclass(frozen=True)
class Logs:
    """The logs of one benchmark's evaluator.

    Attributes:
        evaluator: the start of its files' names
        metrics: our key of a metric -> its name there
        summarised: names of the metrics that its summary holds, where they have a value
    """

    evaluator: str
    metrics: dict[str, str]
    summarised: frozenset[str]


def _of_tofu() -> dict[str, str]:
    found = {name: name for name in ("forget_quality", "model_utility", "forget_truth_ratio")}
    for name, short in TOFU_SETS.items():
        found |= {f"{name}_probability": f"{short}_Q_A_Prob", f"{name}_rouge": f"{short}_Q_A_ROUGE"}
        if name != "forget":
            found[f"{name}_truth_ratio"] = f"{short}_Truth_Ratio"
        if name in NORMALISED:
            found[f"{name}_probability_normalised"] = f"{short}_Q_A_Prob_normalised"
    return found | PRIVACY


_MAIN = ("forget_truth_ratio", "forget_quality", "forget_Q_A_Prob", "forget_Q_A_ROUGE", "model_utility")
FAMILIES = {
    "tofu": Logs("TOFU", _of_tofu(), frozenset({*_MAIN, *PRIVACY.values()})),
    "muse": Logs(
        "MUSE",
        {f"{name}_rouge": log for name, log in MUSE_ROUGE.items()} | PRIVACY,
        frozenset({*MUSE_ROUGE.values(), *PRIVACY.values()}),
    ),
}
