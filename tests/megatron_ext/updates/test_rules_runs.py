"""Whole runs of the rules that have a state of their own, or that end elsewhere than their steps do."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from safetensors.numpy import load_file

from tests.megatron_ext.training.test_resume import steps, weights
from tests.support import worlds

pytestmark = pytest.mark.slow

PDU: dict[str, Any] = {"name": "primal-dual", "dual": 0.8, "dual_rate": 0.4, "warmup_epochs": 1}
LOG_EQUALITY = 1e-12  # the log holds every digit, but the test adds in another order


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data, a target that has learnt a little, and reference log-probabilities of both sets."""
    from megatron_ext.steps import reference, train

    folder = tmp_path_factory.mktemp("world")
    worlds.write_data(folder)
    worlds.sequences(12, 3).save(folder / "short.npz")
    train.main([str(worlds.train_spec(folder))])
    for name, data in {"reference": "forget", "retain-reference": "retain", "short-reference": "short"}.items():
        spec = yaml.safe_load(worlds.reference_spec(folder).read_text())
        spec |= {"data": str(folder / f"{data}.npz"), "output": str(folder / name)}
        (folder / "reference.yaml").write_text(yaml.safe_dump(spec))
        reference.main([str(folder / "reference.yaml")])
    return folder


def make(world: Path, name: str, topic: dict[str, str] | None = None, **changes: Any) -> Path:
    path = worlds.unlearn_spec(world, name, **{"forget_loss": {"name": "ga"}, "epochs": 3.0, **changes})
    spec = yaml.safe_load(path.read_text())
    spec["topics"][0] |= {key: str(world / value) for key, value in (topic or {}).items()}
    path.write_text(yaml.safe_dump(spec))
    return path


def run(world: Path, name: str, topic: dict[str, str] | None = None, **changes: Any) -> list[dict[str, Any]]:
    """The step log of a run in this process."""
    from megatron_ext.steps import unlearn

    unlearn.main([str(make(world, name, topic, **changes))])
    return steps(world / name)


def end(world: Path, name: str) -> dict[str, Any]:
    return json.loads((world / name / "summary.json").read_text())["rule_state"]


def nll_before(world: Path) -> float:
    from megatron_ext.data.sequences import Sequences

    log_probs = np.load(world / "retain-reference" / "reference.npz")["log_probs"]
    return -float(log_probs.sum()) / int(Sequences.load(world / "retain.npz").label_counts.sum())


def test_a_dual_follows_each_steps_retain_loss_after_warm_up(world: Path) -> None:
    log = run(
        world,
        "pdu-step",
        {"retain_reference_logps": "retain-reference/reference.npz"},
        rule={**PDU, "tolerance": 0.02, "forget_weight": 0.3},
    )
    epsilon = end(world, "pdu-step")["epsilon"]
    assert epsilon == pytest.approx(1.02 * nll_before(world), rel=1e-6)
    dual = 0.8
    for line in log:
        assert line["dual"] == line["rule_state"]["dual"] == pytest.approx(dual, rel=LOG_EQUALITY)
        if line["step"] >= 4:  # a pass is 4 steps
            dual = max(0.0, dual + 0.4 * (line["retain_loss"] - epsilon))
    assert end(world, "pdu-step")["dual"] == pytest.approx(dual, rel=LOG_EQUALITY)
    assert len({line["dual"] for line in log}) == 1 + 7, "it stays for 5 steps, then moves with each"


def test_a_dual_follows_the_whole_retain_set_at_the_end_of_each_pass(world: Path) -> None:
    """With no more retain rows than a batch has, the log has the loss of all of them after each pass."""
    topic = {"retain_data": "short.npz"}
    rule = {**PDU, "epsilon": 1.5, "dual_update": "epoch", "warmup_epochs": 2}
    batching = {"global_batch": 15, "micro_batch": 4}
    log = run(world, "pdu-epoch", topic, rule=rule, batching=batching, epochs=4.0)
    dual = 0.8
    for line in log:
        assert line["dual"] == pytest.approx(dual, rel=1e-6)
        if line["retain_nll"] is not None and line["step"] >= 3:  # a pass is 2 steps
            dual = max(0.0, dual + 0.4 * (line["retain_nll"] - 1.5))
    assert [line["step"] for line in log if line["retain_nll"] is not None] == [1, 3, 5, 7]
    assert end(world, "pdu-epoch")["dual"] == pytest.approx(dual, rel=1e-6)
    assert len({line["dual"] for line in log}) == 3


def test_the_automatic_rate_is_looked_for_every_so_many_steps(world: Path) -> None:
    log = run(
        world,
        "ngdiff",
        rule={"name": "ngdiff", "automatic_rate": {"every": 3, "lowest": 1e-4, "highest": 5.0}},
        optimizer={"name": "sgd", "learning_rate": 0.01},
        warmup_epochs=0.0,
    )
    rates = [line["learning_rate"] for line in log]
    assert len(rates) == 12
    assert all(rates[i] == rates[i - i % 3] for i in range(12))
    assert len({rates[i] for i in range(0, 12, 3)} | {0.01}) > 2
    assert all(1e-4 <= rate <= 5.0 for rate in rates)
    assert all(line["update_norm"] ** 2 == pytest.approx(2 + 2 * line["grad_cosine"], abs=1e-9) for line in log)


def test_ofmus_two_loops_take_turns(world: Path) -> None:
    rule = {
        "name": "ofmu",
        "inner_steps": 2,
        "inner_rate": 0.25,
        "penalty": 0.01,
        "growth": 4.0,
        "highest_penalty": 0.1,
    }
    log = run(world, "ofmu", rule=rule, warmup_epochs=0.0)
    assert [line["rule_state"]["phase"] for line in log] == [0.0, 1.0, 2.0] * 4
    assert [line["rule_state"]["penalty"] for line in log[::3]] == [0.01, 0.04, 0.1, 0.1]
    assert [line["learning_rate"] for line in log] == pytest.approx([0.00025, 0.00025, 0.001] * 4)
    assert end(world, "ofmu") == {"penalty": 0.1, "phase": 0.0}
    assert all(line["forget_alignment"] is not None and line["retain_alignment"] is not None for line in log)
    assert all(line["forget_grad_norm"] > 0 and line["retain_loss"] > 0 for line in log)


def test_a_task_vector_is_walked_the_other_way(world: Path) -> None:
    changes: dict[str, Any] = {"forget_loss": {"name": "nll"}, "retain_loss": None, "seed": 3}
    run(world, "fine-tuned", rule={"name": "weighted-sum"}, **changes)
    run(world, "negated", rule={"name": "task-vector", "alpha": 1.5}, **changes)
    before, tuned, negated = (
        load_file(world / name / "checkpoint" / "model.safetensors") for name in ("target", "fine-tuned", "negated")
    )
    assert before.keys() == tuned.keys() == negated.keys()
    for name, start_value in before.items():
        expected = start_value - 1.5 * (tuned[name] - start_value)
        np.testing.assert_allclose(negated[name], expected, rtol=1e-6, atol=1e-7, err_msg=name)
        assert (negated[name] != start_value).any()


STATES: dict[str, dict[str, Any]] = {
    "ngdiff": {
        "rule": {"name": "ngdiff", "automatic_rate": {"every": 4, "highest": 5.0}},
        "optimizer": {"name": "sgd", "learning_rate": 0.01},
        "warmup_epochs": 0.0,
    },
    "ofmu": {"rule": {"name": "ofmu", "inner_steps": 3}},
    "gru": {"rule": {"name": "gru", "mu": 0.3}},  # its state is a vector
}


class CutShort(Exception):
    pass


@pytest.mark.parametrize("method", STATES)
def test_a_rules_state_comes_back_after_a_run_was_cut_short(
    world: Path, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cut short between states, and in the middle of a turn of four steps of OFMU and NGDiff.

    That nothing else is lost where a process is killed is ``test_resume``'s.
    """
    from megatron_ext.training.unlearning import UnlearningRun

    topic = {"retain_reference_logps": "retain-reference/reference.npz"}
    changes = {"checkpoint_every": 5, **STATES[method]}
    log = run(world, f"whole-{method}", topic, **changes)
    step = UnlearningRun.step

    def cut(self: UnlearningRun, i: int) -> Any:
        if i == 8:
            raise CutShort
        return step(self, i)

    with monkeypatch.context() as patched, pytest.raises(CutShort):
        patched.setattr(UnlearningRun, "step", cut)
        run(world, f"cut-{method}", topic, **changes)
    output = world / f"cut-{method}"
    assert (output / "resume").exists() and not (output / "checkpoint").exists()

    assert run(world, f"cut-{method}", topic, **changes) == log

    assert weights(output) == weights(world / f"whole-{method}")
    assert end(world, f"cut-{method}") == end(world, f"whole-{method}")
    if method != "gru":
        first, last = log[0]["rule_state"], end(world, f"cut-{method}")
        assert last != first, "there was a state to lose"


def test_the_vector_of_a_rule_comes_back_to_its_run_and_to_no_other(
    world: Path, alone: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Bits of it; with another layout, which is part of what a run is, the state is dropped and the run told."""
    from megatron_ext.specs import UnlearnSpec
    from megatron_ext.training.unlearning import UnlearningRun

    def begun(layout: dict[str, Any]) -> Any:
        runtime = {"device": "cpu", "layout": layout}
        spec = yaml.safe_load(make(world, "vector", rule={"name": "gru"}, runtime=runtime).read_text())
        return UnlearningRun(UnlearnSpec.model_validate({**spec, "output": str(tmp_path)}), alone)

    first = begun({})
    assert first.resume.restore() == 0
    for i in range(2):
        first.resume.log.write(first.step(i).record)
    first.resume.save(2)
    (mean,) = first.resume.rule_vectors.values()
    assert sum(float(piece.abs().sum()) for piece in mean) > 0
    again = begun({})
    assert again.resume.restore() == 2
    assert {name: [piece.tolist() for piece in vector] for name, vector in again.resume.rule_vectors.items()} == {
        "retain_mean": [piece.tolist() for piece in mean]
    }
    capsys.readouterr()
    elsewhere = begun({"distributed_optimizer": True})
    assert elsewhere.resume.restore() == 0
    assert elsewhere.resume.rule_vectors == {} and "another configuration" in capsys.readouterr().out
