"""The names of an experiment's models."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class ModelId:
    """Which model of an experiment; its text names folders, wildcards of rules, evaluations and rows of the report.

    Attributes:
        run: ``base``, ``target``, ``retrain``, or a method with its variant.
        seed: The seed of unlearning; ``None`` for a model that was not unlearned.
        attack: What was done to the model afterwards, one of the experiment's attacks.
        request: The forget split of the request that the model was asked last; ``None`` for the first.
        epoch: Of a run whose epochs are evaluated, after which one it was saved; ``None``: what the run ended in.
    """

    run: str
    seed: int | None = None
    attack: str | None = None
    request: str | None = None
    epoch: int | None = None

    @property
    def run_folder(self) -> str:
        """The folder of the run and its request, in which every seed has one."""
        return f"{self.run}.{self.request}" if self.request else self.run

    @property
    def before(self) -> ModelId:
        """The model that was attacked; the model itself where it was not."""
        return replace(self, attack=None)

    def __str__(self) -> str:
        seed = "" if self.seed is None else f"-seed-{self.seed}"
        epoch = "" if self.epoch is None else f".epoch-{self.epoch}"
        return f"{self.run_folder}{seed}{epoch}" + (f".{self.attack}" if self.attack else "")

    @classmethod
    def parse(cls, text: str, attacks: Iterable[str] = (), requests: Iterable[str] = ()) -> ModelId:
        """The model of that text.

        Args:
            text: What ``str`` made of it.
            attacks: The experiment's attacks. Names may have dots, so only these say what the last one separates.
            requests: Forget splits of the requests after the first, for the same reason.
        """
        text, attack = _without_ending(text, attacks)
        found = re.fullmatch(r"(.+)-seed-([0-9]+)(?:\.epoch-([0-9]+))?", text, re.DOTALL)
        run, seed, epoch = found.groups() if found else (text, None, None)
        run, request = _without_ending(run, requests)
        return cls(run, int(seed) if seed else None, attack, request, int(epoch) if epoch else None)


def _without_ending(text: str, names: Iterable[str]) -> tuple[str, str | None]:
    """``text`` without the longest of ``names`` that it ends with after a dot, and that name."""
    endings = [name for name in names if text.endswith(f".{name}")]
    name = max(endings, key=len, default=None)
    return text.removesuffix(f".{name}"), name
