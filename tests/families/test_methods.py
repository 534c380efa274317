"""Two steps of every method file on every model family, at layouts of two ranks against one process; with pipeline
stages rows are packed, elsewhere padded.

That a method is its formula is shown on Llama, in ``tests/megatron_ext/losses/test_methods.py``; that a family is
transformers' in ``tests/megatron_ext/checkpoint/test_layouts.py``. Only this shows that nothing of a family (shared and
divided tensors, experts, soft caps, sinks, windows) meets a rule or a loss that takes it for another one.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from megatron_ext.config import Layout, Runtime
from megatron_ext.data.sequences import Sequences, save_arrays
from megatron_ext.losses import LOSSES
from megatron_ext.methods import needed_files
from megatron_ext.schema.safe_yaml import Loader
from megatron_ext.specs import UnlearnSpec
from megatron_ext.updates import RULES
from tests.support import tiny, worlds
from tests.support.distributed import run_ranks
from tests.support.method_world import REFERENCES

pytestmark = [pytest.mark.long, pytest.mark.timeout(1800)]

FILES = sorted((Path(__file__).resolve().parents[2] / "workflow_configs" / "methods").glob("*.yaml"))
METHODS = {path.stem: yaml.load(path.read_text(), Loader) for path in FILES}
# But Llama 2, which is Llama 3 with other numbers.
MODELS = [
    f"{family}-{'tied' if family.startswith('gemma') else 'untied'}" for family in tiny.FAMILIES if family != "llama2"
]
LAYOUTS = ("one", "tensor", "pipeline")
ROWS, MICRO_BATCH = 7, 4
RATE, CLIP = 0.2, 1.0  # how far a step goes at most: a hundredth of the norm of the weights
NUMBERS = 2e-4  # of the log, relatively; 1e-4 seen, of BLUR on RMU, whose retain gradient is small
# Of how far a tensor moves; 2e-6 seen. OFMU's second derivatives are differences of fp32 gradients (2e-4 seen). Where a
# product of two gradients' elements is near zero, its sign, which SAGO asks for, is a matter of rounding (2e-2 seen).
# gpt-oss clamps what its experts compute: where that is at the bound, the gradient jumps by an element (6e-4 seen, of
# one that is 6e-7 from it).
TENSORS, DIFFERENCES, SIGNS, JUMPS = 2e-5, 2e-3, 5e-2, 5e-3
# What is changed of a method's file, so that its terms count in two steps.
SHARPER: dict[str, dict[str, Any]] = {
    "primal-dual": {"dual": 0.8, "dual_rate": 0.2, "epsilon": 2.0, "tolerance": None, "warmup_epochs": 0},
    "ofmu": {"inner_steps": 1, "inner_rate": 0.5, "penalty": 0.02},
    "simnpo": {"beta": 0.4, "delta": 3.0},
    "rmu-retain": {"weight": 1.7},
    "sam": {"rho": 0.3},
}
SCOPE = {"up_to": 1, "layers_to_transform": [0, 1], "target_modules": ["gate_up_proj", "down_proj"]}


def layout(where: str, model: str) -> Layout:
    """Two ranks; those of a mixture have different experts where tensors are split."""
    mixes = model.startswith(tiny.MIXING)
    given: dict[str, dict[str, int]] = {
        "one": {},
        "tensor": {"tensor": 2, "expert": 2 if mixes else 1},
        "pipeline": {"pipeline": 2},
    }
    return Layout.model_validate(given[where])


def spec(folder: Path, where: str, model: str, method: str) -> UnlearnSpec:
    def settings(key: str) -> dict[str, Any] | None:
        given = METHODS[method].get(key)
        return given and {**given, **SHARPER.get(given["name"], {})}

    forget, retain, rule = map(settings, ("forget", "retain", "rule"))
    assert forget and rule
    needed = needed_files(LOSSES[forget["name"]](**forget), RULES[rule["name"]](**rule))
    files = {key: folder / f"{key}.npz" for key in REFERENCES}
    files |= {name: folder / model / f"{name}.npz" for name in REFERENCES.values()}
    return UnlearnSpec.model_validate(
        {
            "checkpoint": str(folder / "fp32" / model),
            "topics": [{"name": "forget", **{key: str(files[key]) for key in ("forget_data", "retain_data", *needed)}}],
            "forget_loss": forget,
            "retain_loss": retain,
            "rule": rule,
            "trainable_layers": SCOPE if METHODS[method].get("trainable_layers") else None,
            "epochs": 2.0,
            "max_steps": 2,
            "batching": {"global_batch": ROWS, "micro_batch": MICRO_BATCH, "packed": where == "pipeline"},
            "optimizer": {"name": "sgd", "learning_rate": RATE}
            | ({} if "automatic_rate" in rule else {"clip_norm": CLIP}),
            "diagnostics": rule.get("dual_update") != "micro-batch",
            "runtime": {"device": "cpu", "timeout_seconds": 120.0, "layout": layout(where, model).model_dump()},
            "output": str(folder / "runs" / where / model / method),
        }
    )


def write_world(folder: Path) -> None:
    """Models, and data with reference log-probabilities that are numbers of about the right size."""
    from megatron_ext.checkpoint.fingerprint import model_fingerprint

    tiny.write(folder, MODELS)
    forget = worlds.sequences(ROWS, 0)
    rng = np.random.default_rng(3)
    prompts = [ids[:prompt].tolist() for ids, prompt in (forget.row(i) for i in range(ROWS))]
    others = [(ids + rng.integers(2, worlds.VOCABULARY, int(rng.integers(1, 9))).tolist(), len(ids)) for ids in prompts]
    sets = {
        "forget_data": forget,
        "retain_data": worlds.sequences(ROWS, 1),
        "preferred_answers": Sequences.pack(others),
    }
    for key, rows in sets.items():
        rows.save(folder / f"{key}.npz")
        for model in MODELS:
            (folder / model).mkdir(exist_ok=True)
            save_arrays(
                folder / model / f"{REFERENCES[key]}.npz",
                log_probs=np.linspace(-70, -20, ROWS),
                data_sha256=np.array(rows.sha256()),
                model_fingerprint=np.array(model_fingerprint(folder / "fp32" / model)),
            )


def run_all(folder: Path, wanted: dict[str, set[str]]) -> None:
    """Every method on the models of each layout, on the ranks that there are, which meet once for each."""
    from megatron_ext.distributed import process_groups
    from megatron_ext.steps import unlearn
    from megatron_ext.summary import Clock

    for where, chosen in wanted.items():
        for models in (
            [name for name in MODELS if name in chosen and not name.startswith(tiny.MIXING)],
            [name for name in MODELS if name in chosen and name.startswith(tiny.MIXING)],
        ):
            if not models:
                continue
            runtime = Runtime(device="cpu", layout=layout(where, models[0]), timeout_seconds=120.0)
            with process_groups.start(runtime) as ranks:
                for model in models:
                    for method in METHODS:
                        unlearn.unlearn(spec(folder, where, model, method), ranks, Clock())


@pytest.fixture(scope="module")
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the tests that are run compare: half of it, where those are a half."""
    wanted: dict[str, set[str]] = {where: set() for where in LAYOUTS}
    for item in request.session.items:
        if isinstance(item, pytest.Function) and item.path == Path(__file__):
            model = item.callspec.params["model"]
            wanted["one"].add(model)
            wanted[item.callspec.params["where"]].add(model)
    made = tmp_path_factory.mktemp("families")
    write_world(made)
    run_ranks(run_all, 1, made, {"one": wanted.pop("one")}, timeout=900.0)
    run_ranks(run_all, 2, made, wanted, timeout=1500.0)
    return made


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("where", LAYOUTS[1:])
def test_a_step_of_every_method_is_that_of_one_process(folder: Path, where: str, model: str) -> None:
    """The step log and the written weights."""
    from safetensors.torch import load_file

    before = load_file(folder / "fp32" / model / "model.safetensors")
    for method in METHODS:
        single, split = (spec(folder, place, model, method) for place in ("one", where))
        bound = {"ofmu": DIFFERENCES, "sago": SIGNS}.get(single.rule.name, TENSORS)
        bound = max(bound, JUMPS) if model.startswith("gptoss") else bound
        logs = [(run.output / "steps.jsonl").read_text().splitlines() for run in (single, split)]
        for number, (wanted, given) in enumerate(zip(*(map(json.loads, log) for log in logs), strict=True)):
            compare(wanted, given, f"{method}, step {number}")
        wanted, given = (load_file(run.output / "checkpoint" / "model.safetensors") for run in (single, split))
        assert set(before) == set(wanted) == set(given)
        for key, tensor in before.items():
            moved = (wanted[key].double() - tensor.double()).norm()
            error = (given[key].double() - wanted[key].double()).norm()
            assert error <= bound * moved + 2**-23 * tensor.norm(), f"{method}: {key}: {error / moved:.1e}"


def compare(wanted: dict[str, Any], given: dict[str, Any], name: str) -> None:
    """Numbers of one step. Before a model has moved, gradients of RMU's and KL's retain loss are rounding."""
    rounding = 1e-3 * (wanted.get("forget_grad_norm") or 0.0)
    further = {
        "retain_loss": max(NUMBERS, rounding),
        "retain_grad_norm": max(NUMBERS, rounding),
        "grad_cosine": 20 * NUMBERS if (wanted.get("retain_grad_norm") or 0.0) > rounding else 2.0,
    }
    for key in ("forget_loss", "forget_grad_norm", "update_norm", "forget_alignment", *further):
        if wanted.get(key) is None:
            aimless = key == "grad_cosine" and (given.get("retain_grad_norm") or 0.0) <= rounding
            assert given.get(key) is None or aimless, f"{name}: {key}"
            continue
        assert given[key] == pytest.approx(wanted[key], rel=NUMBERS, abs=further.get(key, NUMBERS)), f"{name}: {key}"
    for key, value in (wanted.get("rule_state") or {}).items():
        assert given["rule_state"][key] == pytest.approx(value, rel=NUMBERS, abs=NUMBERS), f"{name}: {key}"
