"""``unlearn simulate``: what is refused, and its tables. ``tests/megatron_ext/simulation`` takes the steps."""

from __future__ import annotations

import pytest

from megatron_ext.simulation.recorder import Message
from megatron_ext.simulation.steps import Simulated
from pipeline.__main__ import main
from pipeline.commands import simulate


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--step", "unlearned/blur-np"], "--step: unknown step 'unlearned/blur-np'"),
        (["--set", "runtime.kernels=te"], "runtime.kernels: 'te' is not simulated; allowed: 'torch'"),
        (["--set", "runtime.memory.optimizer=precision-aware", "--set", "runtime.kernels=te"], "is not simulated"),
    ],
)
def test_what_cannot_be_simulated(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["simulate", "tofu-llama-3.1-70b", *words]) == 2
    assert message in capsys.readouterr().err


def test_tables() -> None:
    """A column a stage; a message that a stage does not exchange leaves its cell empty; the plan stands beside the
    largest rank alone."""
    gib = simulate.GIB
    receive = {Message("receive", "pipeline", 24): 3}
    stages = [
        Simulated(number, {("weight", (2, 3)): 4}, gib, gib, 2 * gib, 0, 0, 0, peak * gib, messages)
        for number, (peak, messages) in enumerate([(5, {}), (4, receive)])
    ]
    heads, first, second = simulate.memory("a step", stages, 6 * gib)
    assert heads.split()[-2:] == ["peak", "planned"]
    assert first.split()[-2:] == ["5.00", "6.00"] and second.split()[-1] == "4.00"
    assert simulate.messages(stages)[1].split() == ["receive", "pipeline", "24", "3"]
    assert simulate.parameters(stages)[1].split() == ["weight", "2", "x", "3", "4", "4"]
