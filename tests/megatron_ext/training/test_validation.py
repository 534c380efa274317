"""The sample that is scored during unlearning: its numbers against transformers, at every layout; the best weights."""

from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from pydantic import ValidationError
from safetensors.numpy import load_file, save_file

from megatron_ext.config.selection import Validation
from megatron_ext.data.sequences import Sequences
from megatron_ext.specs import UnlearnSpec, read
from tests.megatron_ext.training.test_resume import TIMES
from tests.support import worlds
from tests.support.distributed import run_ranks

pytestmark = pytest.mark.slow

EQUAL = 1e-5  # fp32 numbers of order one, added in another order
ROWS = 7
LAYOUTS: dict[str, dict[str, Any]] = {
    "tp2": {"tensor": 2, "sequence_parallel": True},
    "pp2": {"pipeline": 2},
    "dp2": {"data": 2, "distributed_optimizer": True},
}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two topics' data, and a target that knows the first one's forget set by heart and something of the rest."""
    from megatron_ext.steps import train

    folder = tmp_path_factory.mktemp("world")
    worlds.write_data(folder)
    worlds.sequences(9, 3).save(folder / "other-forget.npz")
    worlds.sequences(20, 4).save(folder / "other-retain.npz")
    data = {str(folder / f"{kind}.npz"): 0.5 for kind in ("forget", "retain")}
    fast = {"optimizer": {"learning_rate": 0.01, "clip_norm": 1.0}, "batching": {"global_batch": 32, "micro_batch": 32}}
    train.main([str(worlds.train_spec(folder, steps=60, data=data, **fast))])
    return folder


def make(world: Path, name: str, validation: dict[str, Any] | None, **changes: Any) -> Path:
    """The specification of an ascent, whose score rises while it forgets and falls when it loses everything."""
    ascent = {"forget_loss": {"name": "ga"}, "retain_loss": None, "rule": {"name": "weighted-sum"}}
    topics = [{f"{kind}_data": str(world / f"{kind}.npz") for kind in ("forget", "retain")}]
    fast = {
        "topics": topics,
        "epochs": 3.0,
        "warmup_epochs": 0.0,
        "optimizer": {"learning_rate": 0.001, "epsilon": 1e-4},
    }
    return worlds.unlearn_spec(world, name, **{**ascent, **fast, "validation": validation, **changes})


def run(world: Path, name: str, validation: dict[str, Any] | None, **changes: Any) -> Path:
    from megatron_ext.steps import unlearn

    unlearn.main([str(make(world, name, validation, **changes))])
    return world / name


def trajectory(folder: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (folder / "trajectory.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in TIMES} for line in lines]


def summary(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "summary.json").read_text())


def weights(folder: Path, checkpoint: str = "checkpoint") -> bytes:
    return (folder / checkpoint / "model.safetensors").read_bytes()


def plain(checkpoint: Path, sets: list[tuple[Path, list[int]]]) -> tuple[float, float, float]:
    """Mean probability, NLL and share of greedy tokens of these rows, by transformers and the formulas."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
    found = []
    for path, rows in sets:
        sequences = Sequences.load(path)
        for row in rows:
            ids, prompt = sequences.row(row)
            tokens = torch.from_numpy(ids.astype("int64"))
            with torch.no_grad():
                logits = model(tokens[None]).logits[0, prompt - 1 : -1].double()
            each = logits.log_softmax(-1).gather(-1, tokens[prompt:, None])
            nll = -float(each.mean())
            greedy = float((logits.argmax(-1) == tokens[prompt:]).double().mean())
            found.append((np.exp(-nll), nll, greedy))
    return tuple(float(values) for values in np.mean(found, axis=0))  # type: ignore[return-value]


def harmonic(row: dict[str, Any], before: float) -> float:
    a, b = 1 - row["forget_probability"], min(1.0, row["retain_probability"] / before)
    return 2 / (1 / a + 1 / b)


def assert_is(row: dict[str, Any], checkpoint: Path, samples: dict[str, list[tuple[Path, list[int]]]]) -> None:
    for name, sets in samples.items():
        probability, nll, greedy = plain(checkpoint, sets)
        assert row[f"{name}_probability"] == pytest.approx(probability, abs=EQUAL)
        assert row[f"{name}_nll"] == pytest.approx(nll, abs=EQUAL)
        assert row[f"{name}_greedy_match"] == pytest.approx(greedy, abs=EQUAL)


def test_numbers_are_the_formulas_of_two_topics_samples_before_and_after(world: Path) -> None:
    from megatron_ext.training.validation import draw

    topics = [
        {"name": name, **{f"{kind}_data": str(world / f"{start}{kind}.npz") for kind in ("forget", "retain")}}
        for name, start in (("first", ""), ("second", "other-"))
    ]
    folder = run(world, "topics", {"every_epochs": 1.0, "rows": 12, "seed": 5}, topics=topics)
    samples: dict[str, list[tuple[Path, list[int]]]] = {"forget": [], "retain": []}
    for purpose, kind in enumerate(samples):
        for i, topic in enumerate(topics):
            path = Path(topic[f"{kind}_data"])
            rows = draw(len(Sequences.load(path)), 12, 5, i, purpose)
            assert len(set(rows)) == len(rows) == min(12, len(Sequences.load(path)))
            samples[kind].append((path, rows))
    assert [len(rows) for _, rows in samples["forget"]] == [12, 9]
    log = trajectory(folder)
    assert [row["step"] for row in log] == [0, 4, 8, 12]  # 9 rows in batches of 8, by turns with the other topic
    assert [row["epoch"] for row in log] == [0.0, 1.0, 2.0, 3.0]
    assert_is(log[0], world / "target" / "checkpoint", samples)
    assert_is(log[-1], folder / "checkpoint", samples)
    assert all(row["score"] == pytest.approx(harmonic(row, log[0]["retain_probability"]), rel=1e-12) for row in log)
    assert log[-1]["forget_nll"] > 1.05 * log[0]["forget_nll"], "the run does something"
    assert summary(folder)["select"] == "last" and summary(folder)["selected_step"] == 12
    assert summary(folder)["validation_seconds"] > 0


def test_steps_are_those_of_a_run_without_validation(world: Path) -> None:
    """And of one that saves epochs, whose checkpoints are those of runs that end there."""
    without, with_it = (
        run(world, "without", None),
        run(world, "with", {"every_steps": 1, "rows": ROWS}, saved_epochs=[1, 3]),
    )
    assert weights(with_it) == weights(without) == weights(with_it, "epochs/epoch-3")
    assert weights(with_it, "epochs/epoch-1") == weights(run(world, "an-epoch", None, max_steps=4))
    assert (with_it / "epochs/epoch-1/tokenizer.json").exists() == (without / "checkpoint/tokenizer.json").exists()
    assert summary(with_it)["saved_epochs"] == {"1": 4, "3": 12} and not (without / "epochs").exists()
    assert len(trajectory(with_it)) == 13
    assert (without / "trajectory.jsonl").read_text() == ""
    last = {"select": "last", "selected_step": 12, "selected_because": "the last step"}
    assert summary(without).items() >= last.items()


def test_the_best_weights_are_written_and_named(world: Path) -> None:
    validation = {"every_steps": 2, "rows": 20, "select": "best-on-validation"}
    changes = {"epochs": 5.0}
    best = run(world, "best", validation, **changes)
    log = trajectory(best)
    scores = {row["step"]: row["score"] for row in log if row["step"] > 0}
    chosen = max(scores, key=lambda step: (scores[step], -step))
    assert 0 < chosen < 20, "neither the first nor the last step is the best, so that there is something to choose"
    found = summary(best)
    assert found["select"] == "best-on-validation" and found["selected_step"] == chosen and found["steps"] == 20
    assert found["selected_because"] == (
        f"validation score {scores[chosen]:.4g} after step {chosen}, the best of 10 measured "
        "on 20 forget and 20 retain rows (seed 0)"
    )
    cut = run(world, "cut-short", validation, **changes, max_steps=chosen)
    last = run(world, "last", {**validation, "select": "last"}, **changes)
    assert weights(best) == weights(cut) != weights(last), "the weights after that step, not those after the last"
    assert found["retain_nll"] == summary(cut)["retain_nll"] != summary(last)["retain_nll"]
    assert trajectory(last) == log
    assert not (best / "resume").exists() and not list(best.glob("**/best-*"))


def test_the_first_step_of_a_warm_up_is_not_chosen(world: Path) -> None:
    """Its rate is 0, so that its weights are target's, which no budget is broken with."""
    budget = {"metric": "retain_probability", "at_least": 1.0}
    validation = {"every_steps": 1, "rows": 20, "select": {"budget": budget}}
    found = summary(run(world, "warmed", validation, epochs=1.0, warmup_epochs=0.5))
    assert found["selected_step"] == 2 and "unchanged" not in found["flags"]


def test_a_run_ends_where_the_budget_is_broken_with_the_best_step_within_it(world: Path) -> None:
    """Its trajectory is the whole run's up to that step, and its weights are those of the step that forgot most."""
    changes = {"epochs": 5.0}
    log = trajectory(run(world, "whole", {"every_steps": 2, "rows": 20}, **changes))
    shares = [row["retain_probability"] / log[0]["retain_probability"] for row in log]
    breaks = next(i for i in range(3, 10) if shares[i] < min(shares[1:i]))
    share = (shares[breaks] + min(shares[1:breaks])) / 2
    select = {"budget": {"metric": "retain_probability", "at_least": share, "of": "target"}}
    budget = run(world, "budget", {"every_steps": 2, "rows": 20, "select": select}, **changes)
    assert trajectory(budget) == log[: breaks + 1]
    chosen = min(log[1:breaks], key=lambda row: row["forget_probability"])["step"]
    found = summary(budget)
    assert (found["select"], found["selected_step"]) == ("best-within-budget", chosen)
    assert found["steps"] == log[breaks]["step"] and found["flags"] == ["stopped-early"]
    assert weights(budget) == weights(run(world, "up-to-it", None, **changes, max_steps=chosen))


def test_a_rule_that_extrapolates_is_scored_where_it_would_end(world: Path) -> None:
    """Each point is that of a run which ends there; the best of them is the best run."""
    rule = {"forget_loss": {"name": "nll"}, "rule": {"name": "task-vector", "alpha": 2.0}}
    changes = {**rule, "epochs": 2.0, "optimizer": {"learning_rate": 0.003}}
    validation = {"every_steps": 2, "rows": 30}
    runs = {n: run(world, f"vector-{n}", validation, **changes, max_steps=n, saved_epochs=[1]) for n in (2, 4, 6, 8)}
    assert weights(runs[8], "epochs/epoch-1") == weights(runs[4]) != weights(runs[8])
    log = trajectory(runs[8])
    for n, folder in runs.items():
        assert trajectory(folder) == log[: n // 2 + 1]
    every_row = {"forget": [(world / "forget.npz", list(range(30)))]}
    assert_is(log[-1], runs[8] / "checkpoint", every_row)
    best = run(world, "vector-best", {**validation, "select": "best-on-validation"}, **changes)
    assert trajectory(best) == log
    chosen = max(log[1:], key=lambda row: row["score"])["step"]
    assert chosen < 8
    assert weights(best) == weights(runs[chosen])


def test_a_model_that_gives_no_number_ends_the_run(world: Path) -> None:
    from megatron.core import parallel_state

    from megatron_ext.training.accumulator import NonFinite

    broken = world / "broken" / "checkpoint"
    shutil.copytree(world / "target" / "checkpoint", broken)
    tensors = load_file(broken / "model.safetensors")
    tensors["model.norm.weight"][:] = np.nan
    save_file(tensors, broken / "model.safetensors", {"format": "pt"})
    with pytest.raises(NonFinite, match=r"step 0: validation: forget_probability is nan\. No state was saved"):
        run(world, "nan", {"every_steps": 1}, checkpoint=str(broken))
    parallel_state.destroy_model_parallel()  # a failed program's process ends; this one goes on


BEST = {"every_steps": 3, "rows": ROWS, "select": "best-on-validation"}


def unlearn_each(specs: list[str]) -> None:
    from megatron_ext.steps import unlearn

    for spec in specs:
        unlearn.main([spec])


def test_the_trajectory_and_the_choice_do_not_depend_on_the_layout(world: Path) -> None:
    one, specs = run(world, "one", BEST), []
    for name, layout in LAYOUTS.items():
        runtime = {"device": "cpu", "timeout_seconds": 60.0, "layout": layout}
        specs.append(str(make(world, name, BEST, runtime=runtime)))
    run_ranks(unlearn_each, 2, specs)
    expected, tensors = trajectory(one), load_file(one / "checkpoint" / "model.safetensors")
    assert 0 < summary(one)["selected_step"] < 12
    for name in LAYOUTS:
        got = trajectory(world / name)
        assert [row["step"] for row in got] == [row["step"] for row in expected] == [0, 3, 6, 9, 12]
        for a, b in zip(expected, got, strict=True):
            assert b == pytest.approx(a, rel=1e-4, abs=EQUAL), (name, a["step"])
        assert summary(world / name)["selected_step"] == summary(one)["selected_step"]
        for key, value in load_file(world / name / "checkpoint" / "model.safetensors").items():
            np.testing.assert_allclose(value, tensors[key], atol=1e-5, err_msg=f"{name}: {key}")


def unlearn_and_die(spec: str, step: int) -> None:
    """Killed when the weights after this step may be the best and are written, but the trajectory does not say so."""
    from megatron_ext.steps import unlearn
    from megatron_ext.training.step_log import StepLog

    plain = StepLog.write

    def write(log: StepLog, record: dict[str, Any]) -> None:
        if log.path.name == "trajectory.jsonl" and record["step"] == step:
            os.kill(os.getpid(), signal.SIGKILL)
        plain(log, record)

    StepLog.write = write  # type: ignore[method-assign]
    unlearn.main([spec])


def test_epochs_that_a_budget_may_never_reach_are_refused(world: Path) -> None:
    """Only this asks a program for both; an experiment says so of its own keys."""
    budget = {**BEST, "select": {"budget": {"metric": "retain_probability", "at_least": 0.9}}, "every_steps": 1}
    with pytest.raises(SystemExit, match="saved_epochs: a run with a budget may stop before them"):
        read(make(world, "both", budget, saved_epochs=[1]), UnlearnSpec)


def test_a_killed_run_ends_in_the_same_best_weights(world: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Killed before the first state, then where the best so far is not that of the newest state. So do its epochs."""
    validation = {**BEST, "every_steps": 1}
    changes = {"epochs": 5.0, "checkpoint_every": 4, "saved_epochs": [1, 4]}
    whole = run(world, "whole", validation, **changes)
    log, cut = trajectory(whole), make(world, "cut", validation, **changes)
    output = world / "cut"

    def best(steps: int) -> int:
        return max(log[1 : steps + 1], key=lambda row: (row["score"], -row["step"]))["step"]

    later = [n for n in range(5, 20) if n % 4 and best(n) == n]  # and the newest state is older
    assert len(later) > 1 and best(20) < 20
    for step in (3, later[1]):
        with pytest.raises(RuntimeError, match="rank 0 of 1 failed"):
            run_ranks(unlearn_and_die, 1, str(cut), step)
        assert not (output / "checkpoint").exists() and not (output / "trajectory.jsonl").exists()
        state = step // 4 * 4
        kept = {best(state), best(step - 1), step} if state else {best(step - 1), step}
        assert sorted(path.name for path in (output / "resume").glob("best-*")) == [
            f"best-{n:08d}" for n in sorted(kept)
        ]
    capfd.readouterr()
    run(world, "cut", validation, **changes)
    assert f"going on after step {later[1] // 4 * 4}" in capfd.readouterr().out
    assert weights(output) == weights(whole)
    assert [weights(output, f"epochs/epoch-{n}") for n in (1, 4)] == [
        weights(whole, f"epochs/epoch-{n}") for n in (1, 4)
    ]
    assert trajectory(output) == log
    assert summary(output)["selected_step"] == summary(whole)["selected_step"] == best(20)
    assert not (output / "resume").exists()


def test_where_the_best_weights_or_the_trajectory_are_damaged_the_run_starts_afresh(
    world: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """In place of ending at each start; what is missing of a state beside it is named."""
    validation, changes = {**BEST, "every_steps": 1}, {"epochs": 3.0, "checkpoint_every": 4, "saved_epochs": [1]}
    expected = weights(run(world, "unharmed", validation, **changes))
    output = world / "harmed"
    with pytest.raises(RuntimeError, match="rank 0 of 1 failed"):
        run_ranks(unlearn_and_die, 1, str(make(world, "harmed", validation, **changes)), 6)
    (output / "resume").rename(world / "kept")
    log = (world / "kept" / "trajectory.jsonl").read_text().splitlines(keepends=True)
    for file, text, said in (
        ("trajectory.jsonl", "".join(log[:3]), "3 lines, and the state after 4 steps needs 5"),
        ("trajectory.jsonl", "".join([*log[:2], '{"step": 2}\n', *log[3:]]), "KeyError: 'score'"),
        ("epochs/epoch-1", None, "epoch-1 is missing"),
        ("best-*", None, " is missing"),
    ):
        shutil.copytree(world / "kept", output / "resume")
        for path in (output / "resume").glob(file):
            shutil.rmtree(path) if text is None else path.write_text(text)
        capfd.readouterr()
        run(world, "harmed", validation, **changes)
        printed = capfd.readouterr().out
        assert "a state cannot be read and is left out: " in printed and said in printed
        assert weights(output) == expected and not (output / "resume").exists()


def test_when_the_sample_is_scored() -> None:
    assert Validation(every_steps=4).points(10, 3) == [0, 4, 8, 10]
    assert Validation(every_steps=5).points(10, 3) == [0, 5, 10]
    assert Validation(every_epochs=1.0).points(10, 3) == [0, 3, 6, 9, 10]
    assert Validation(every_epochs=2.5).points(20, 3) == [0, 8, 15, 20]
    assert Validation(every_epochs=0.01).points(3, 3) == [0, 1, 2, 3]
    assert Validation(every_steps=100).points(10, 3) == [0, 10]


def test_the_score_is_the_harmonic_mean_of_what_is_forgotten_and_what_is_kept() -> None:
    from megatron_ext.training.validation import score

    assert score(0.2, 0.45, 0.9) == pytest.approx(2 / (1 / 0.8 + 1 / 0.5))
    assert score(0.2, 0.95, 0.9) == pytest.approx(2 / (1 / 0.8 + 1)), "better than before counts as kept"
    assert score(1.0, 0.9, 0.9) == score(0.1, 0.0, 0.9) == score(1.0, 0.0, 0.9) == 0.0
    assert score(1.0 + 1e-9, 0.9, 0.9) == 0.0, "rounding does not make it negative"
    assert score(0.5, 0.0, 0.0) == pytest.approx(2 / 3)


@pytest.mark.parametrize(
    ("validation", "message"),
    [
        ({}, "give exactly one of 'every_steps' and 'every_epochs'"),
        ({"every_steps": 2, "every_epochs": 1.0}, "give exactly one of 'every_steps' and 'every_epochs'"),
        ({"every_steps": 0}, "every_steps"),
        ({"every_steps": 2, "select": "best"}, "'last' or 'best-on-validation'"),
    ],
)
def test_settings_that_will_not_do(tmp_path: Path, validation: dict[str, Any], message: str) -> None:
    spec = yaml.safe_load(make(tmp_path, "wrong", validation).read_text())
    with pytest.raises(ValidationError, match=message):
        UnlearnSpec.model_validate(spec)


def test_a_part_of_a_model_cannot_be_validated(tmp_path: Path) -> None:
    hidden = {"forget_loss": {"name": "rmu"}, "trainable_layers": {"up_to": 1}, "optimizer": {"learning_rate": 0.001}}
    good = yaml.safe_load(make(tmp_path, "trainable_layers", None, **hidden).read_text())
    UnlearnSpec.model_validate(good)
    with pytest.raises(
        ValidationError, match="validation: is given, but the method's 'trainable_layers' builds layers"
    ):
        UnlearnSpec.model_validate({**good, "validation": {"every_steps": 2}})
