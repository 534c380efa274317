"""RMU against its formula in plain torch, what of a model it builds, and whole runs of it at every layout."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from megatron_ext.config import Layout, Optimizer, TrainableLayers
from megatron_ext.data.collate import SequenceDataset
from megatron_ext.data.sampling import ForgetRetainSampler
from megatron_ext.data.sequences import Sequences
from megatron_ext.losses.rmu import RMU, direction
from megatron_ext.losses.rmu_retain import RMURetain
from megatron_ext.specs import UnlearnSpec, read
from tests.support import tiny, worlds
from tests.support.distributed import run_ranks

MODEL = "qwen2-tied"  # with biases, which are not trained
FORGET, RETAIN = worlds.sequences(10, 1), worlds.sequences(40, 2)
FORGET_ROWS, RETAIN_ROWS = [0, 3, 4, 7, 9], [1, 5, 8, 20, 33]
EVERY = ["qkv_proj", "o_proj", "gate_up_proj", "down_proj"]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    tiny.write(folder, [MODEL, "llama3-untied"])
    return folder / "fp32"


# The control vectors


def test_control_vectors_depend_on_seed_and_topic_alone() -> None:
    import torch

    first = direction(0, "cyber", 64)
    direction.cache_clear()
    torch.manual_seed(5)
    assert direction(0, "cyber", 64).equal(first)
    assert float(first.norm()) == pytest.approx(1.0)
    assert float(first.min()) >= 0 and float(first.std()) > 0.02
    for other in (direction(1, "cyber", 64), direction(0, "bio", 64)):
        assert float(first @ other) < 0.95


# The losses


def hidden_states(model: Any, data: Sequences, row: int, layer: int) -> Any:
    """``[t, h]`` that leave a block of a transformers model, one sequence at a time."""
    import torch

    found = []
    hook = model.model.layers[layer].register_forward_hook(
        lambda _, __, out: found.append(out[0] if isinstance(out, tuple) else out)
    )
    model(torch.tensor(data.row(row)[0].astype("int64"))[None])
    hook.remove()
    return found[0].reshape(-1, found[0].size(-1))


def mean_square(differences: list[Any], prompts: list[int], positions: str, reduction: str) -> Any:
    import torch

    if positions == "labelled":
        differences = [d[prompt:] for d, prompt in zip(differences, prompts, strict=True)]
    if reduction == "sequence":
        return sum(d.square().mean() for d in differences) / len(differences)
    if reduction == "sums":  # [b] divided by [b, 1], as open-unlearning's code has it
        sums = torch.stack([d.square().mean(-1).sum() for d in differences])
        return (sums / torch.tensor([[float(len(d))] for d in differences])).mean()
    return torch.cat(differences).square().mean()


def terms(forget: RMU, retain: RMURetain, topic: str = "cyber") -> list[Any]:
    from megatron_ext.training.loss_terms import LossTerm

    return [
        LossTerm("forget_loss", forget, SequenceDataset([FORGET]), FORGET_ROWS, topic=topic),
        LossTerm("retain_loss", retain, SequenceDataset([RETAIN]), RETAIN_ROWS, topic=topic),
    ]


@pytest.mark.parametrize("name", [MODEL, "llama3-untied"])
@pytest.mark.parametrize(
    ("positions", "reduction"),
    [("all", "token"), ("labelled", "token"), ("all", "sequence"), ("labelled", "sequence"), ("labelled", "sums")],
)
def test_losses_and_gradients_are_those_of_plain_torch(
    alone: Any, models: Path, name: str, positions: Any, reduction: Any
) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    from megatron_ext.checkpoint import reading
    from megatron_ext.training.reference_model import ReferenceMatrices
    from megatron_ext.training.trainer import Trainer

    trainable_layers = TrainableLayers(up_to=1, layers_to_transform=[0, 1], target_modules=EVERY)
    settings = {"positions": positions, "reduction": reduction}
    both = terms(RMU(steering={"cyber": 7.0}, seed=4, **settings), RMURetain(weight=3.0, **settings))
    ours = reading.load(models / name, alone, trainable_layers)
    trainer = Trainer(ours, alone, Optimizer(learning_rate=0.1, name="sgd"), 2, ReferenceMatrices(ours, alone))

    theirs = AutoModelForCausalLM.from_pretrained(models / name)
    before = [hidden_states(theirs, RETAIN, row, 1).detach() for row in RETAIN_ROWS]
    with torch.no_grad():  # away from where the retain loss is zero
        for layer in (0, 1):
            theirs.model.layers[layer].mlp.down_proj.weight.mul_(1.1)
            ours.decoder.layers[layer].mlp.linear_fc2.weight.mul_(1.1)
    control = 7.0 * direction(4, "cyber", 64)
    f = mean_square(
        [hidden_states(theirs, FORGET, row, 1) - control for row in FORGET_ROWS],
        [FORGET.row(row)[1] for row in FORGET_ROWS],
        positions,
        reduction,
    )
    after = [hidden_states(theirs, RETAIN, row, 1) for row in RETAIN_ROWS]
    r = 3.0 * mean_square(
        [h - h0 for h, h0 in zip(after, before, strict=True)],
        [RETAIN.row(row)[1] for row in RETAIN_ROWS],
        positions,
        reduction,
    )
    for objective, plain in enumerate((f, r)):
        assert plain.item() > 1e-3
        theirs.zero_grad()
        plain.backward(retain_graph=True)
        (total,) = trainer.accumulator.accumulate([both[objective]], [1.0]).sums
        assert float(total) / both[objective].units == pytest.approx(plain.item(), rel=1e-5)
        gradients = {key: value.grad for key, value in theirs.named_parameters()}
        for key, gradient, expected in as_ours(ours, alone, gradients):
            scale = float(expected.abs().max())
            assert scale > 0, key
            torch.testing.assert_close(
                gradient, expected, rtol=1e-4, atol=1e-5 * scale, msg=lambda t, k=key: f"{k} {t}"
            )


def as_ours(model: Any, ranks: Any, gradients: dict[str, Any]) -> Any:
    """(name, our gradient, the Hugging Face gradients laid out as it) of each parameter that is trained."""
    import torch

    from megatron_ext.checkpoint import mapping

    parameters = dict(model.named_parameters())
    trained = {key for key, value in parameters.items() if value.requires_grad}
    for entry in mapping.entries(model.hf_config, ranks.layout, 0, model.trainable_layers):
        for key in trained.intersection(entry.names):
            expected = torch.zeros_like(parameters[key])
            for part in entry.parts(0, 1):
                place = part.place(expected)
                place.copy_(gradients[part.name][part.index].reshape(place.shape))
            trained.discard(key)
            yield key, parameters[key].main_grad, expected
    assert not trained


# What is built


def test_only_the_layers_up_to_the_scopes_are_built(alone: Any, models: Path) -> None:
    from megatron_ext.checkpoint import reading
    from megatron_ext.training.reference_model import ReferenceMatrices

    model = reading.load(models / MODEL, alone, TrainableLayers(up_to=1, layers_to_transform=[1]))
    names = dict(model.named_parameters())
    assert {name.split(".")[2] for name in names if name.startswith("decoder.layers.")} == {"0", "1"}
    assert not any("final_layernorm" in name or "output_layer" in name for name in names)
    assert [name for name, p in names.items() if p.requires_grad] == ["decoder.layers.1.mlp.linear_fc2.weight"]
    hidden, inner, kv = 64, 88, 32
    attention = 2 * hidden * hidden + 2 * kv * hidden + (hidden + 2 * kv)  # with biases of queries, keys and values
    layer = attention + 3 * hidden * inner + 2 * hidden
    held = sum(p.untyped_storage().nbytes() for p in names.values())
    assert held == 4 * (tiny.VOCABULARY * hidden + 2 * layer)
    reference_model = ReferenceMatrices(model, alone)
    assert sum(value.untyped_storage().nbytes() for value in reference_model._original.values()) == 4 * hidden * inner


@pytest.mark.parametrize(
    ("trainable_layers", "trained"),
    [
        ({"up_to": 2}, [0, 1, 2]),
        ({"up_to": 1}, [0, 1]),
        ({"up_to": 2, "layers_to_transform": [2], "target_modules": ["o_proj", "qkv_proj"]}, [2]),
    ],
)
def test_what_is_trained(alone: Any, models: Path, trainable_layers: dict[str, Any], trained: list[int]) -> None:
    from megatron_ext.checkpoint import reading

    model = reading.load(models / MODEL, alone, TrainableLayers(**trainable_layers))
    found = [name for name, p in model.named_parameters() if p.requires_grad]
    matrices = {"o_proj": "self_attention.linear_proj", "qkv_proj": "self_attention.linear_qkv"}
    ends = [matrices[name] for name in trainable_layers.get("target_modules", [])] or ["mlp.linear_fc2"]
    assert sorted(found) == sorted(f"decoder.layers.{layer}.{end}.weight" for layer in trained for end in ends)


def test_scopes_that_do_not_fit_a_model_are_refused(alone: Any, models: Path) -> None:
    from megatron_ext.checkpoint import reading
    from megatron_ext.config import pipeline_split

    with pytest.raises(ValueError, match=r"trainable_layers.up_to: 3 is none of the model's 3 layers \(0 to 2\)"):
        reading.load(models / MODEL, alone, TrainableLayers(up_to=3))
    with pytest.raises(ValueError, match="trainable_layers: 1 layers are built, too few for 2 stages"):
        pipeline_split(3, Layout(pipeline=2), TrainableLayers(up_to=0))
    assert pipeline_split(12, Layout(pipeline=2, pipeline_split=[4, 8]), TrainableLayers(up_to=4)) == [3, 2]
    with pytest.raises(ValueError, match=r"layers_to_transform: \[1, 1\] names one twice"):
        TrainableLayers(up_to=1, layers_to_transform=[1, 1])
    with pytest.raises(ValueError, match=r"target_modules: \['o_proj', 'o_proj'\] names one twice"):
        TrainableLayers(up_to=1, target_modules=["o_proj", "o_proj"])
    with pytest.raises(ValueError, match=r"layers_to_transform: \[0, 2\] goes beyond up_to: 1"):
        TrainableLayers(up_to=1, layers_to_transform=[0, 2])


# Whole runs


TOPICS = {"cyber": (4.0, 2.0), "bio": (9.0, 0.5)}  # steering and retain weight
# Over tensors and stages at once, RMU runs on experts, in tests/megatron_ext/training/test_mixtures.py; over tensors
# alone, against its formula, in test_methods.py.
LAYOUTS: dict[str, dict[str, Any]] = {
    "one": {},
    "pp2": {"pipeline": 2},  # of which the first stage trains nothing
    "dp2": {"data": 2, "distributed_optimizer": True},
}
TRAINED = "model.layers.1.mlp.down_proj.weight"
STEPS = 7


def topic(folder: Path, name: str, forget: str) -> dict[str, str]:
    return {"name": name, "forget_data": str(folder / forget), "retain_data": str(folder / "retain.npz")}


def rmu_spec(folder: Path, name: str, layout: dict[str, Any] | None = None, **changes: Any) -> Path:
    """Two topics of different coefficients in turn, their gradients added; ``changes`` to that."""
    spec = {
        "topics": [topic(folder, "cyber", "forget.npz"), topic(folder, "bio", "second.npz")],
        "trainable_layers": {"up_to": 1, "layers_to_transform": [1]},
        "forget_loss": {"name": "rmu", "steering": {name: c for name, (c, _) in TOPICS.items()}, "seed": 3},
        "retain_loss": {"name": "rmu-retain", "weight": {name: alpha for name, (_, alpha) in TOPICS.items()}},
        "rule": {"name": "weighted-sum"},
        "max_steps": STEPS,
        "warmup_epochs": 0.0,
        "diagnostics": True,
    }
    return worlds.unlearn_spec(folder, name, layout, **{**spec, **changes})


def blur_spec(folder: Path, name: str, layout: dict[str, Any] | None = None) -> Path:
    return rmu_spec(
        folder,
        name,
        layout,
        topics=[topic(folder, "bio", "second.npz")],
        forget_loss={"name": "rmu", "positions": "labelled", "reduction": "sequence"},
        retain_loss={"name": "rmu-retain", "positions": "labelled", "reduction": "sequence"},
        rule={"name": "blur", "gamma": 0.5},
    )


def make_world(folder: Path) -> None:
    from megatron_ext.steps import train

    worlds.write_data(folder)
    worlds.sequences(20, 7).save(folder / "second.npz")
    train.main([str(worlds.train_spec(folder, steps=2))])


def unlearn_twice(folder: Path, name: str) -> None:
    from megatron_ext.steps import unlearn

    for kind in ("sum", "blur"):
        unlearn.main([str(folder / f"{name}-{kind}.yaml")])


def unlearn_and_die(folder: Path, name: str) -> None:
    """Unlearn until every process kills itself before step 5."""
    from megatron_ext.steps import unlearn
    from megatron_ext.training.trainer import Trainer

    plain = Trainer.step

    def step(self: Trainer, *args: Any, **kwargs: Any) -> Any:
        place = args[5]
        if place.step == 5:
            os.kill(os.getpid(), signal.SIGKILL)
        return plain(self, *args, **kwargs)

    Trainer.step = step  # type: ignore[method-assign]
    unlearn.main([str(folder / f"{name}.yaml")])


def unlearn_once(folder: Path, name: str) -> None:
    from megatron_ext.steps import unlearn

    unlearn.main([str(folder / f"{name}.yaml")])


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rmu")
    run_ranks(make_world, 1, folder)
    for name, layout in LAYOUTS.items():
        rmu_spec(folder, f"{name}-sum", layout)
        blur_spec(folder, f"{name}-blur", layout)
        run_ranks(unlearn_twice, Layout(**layout).ranks, folder, name)
    return folder


def log(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "steps.jsonl").read_text().splitlines()]


def tensors(folder: Path) -> dict[str, Any]:
    from safetensors.torch import load_file

    return load_file(folder / "checkpoint" / "model.safetensors")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["sum", "blur"])
@pytest.mark.parametrize("name", [name for name in LAYOUTS if name != "one"])
def test_runs_do_not_depend_on_the_layout(world: Path, name: str, kind: str) -> None:
    import torch

    expected, given = log(world / f"one-{kind}"), log(world / f"{name}-{kind}")
    assert len(given) == len(expected) == STEPS
    for a, b in zip(expected, given, strict=True):
        for key in ("forget_loss", "retain_loss", "forget_grad_norm", "retain_grad_norm", "update_norm"):
            assert b[key] == pytest.approx(a[key], rel=1e-3, abs=1e-6), (a["step"], key)
    first, second = tensors(world / f"one-{kind}"), tensors(world / f"{name}-{kind}")
    torch.testing.assert_close(second[TRAINED], first[TRAINED], rtol=1e-3, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["sum", "blur"])
@pytest.mark.parametrize("name", LAYOUTS)
def test_all_other_tensors_are_bit_identical(world: Path, name: str, kind: str) -> None:
    base, given = tensors(world / "target"), tensors(world / f"{name}-{kind}")
    assert list(given) == list(base)
    assert [key for key in base if not given[key].equal(base[key])] == [TRAINED]
    summary = json.loads((world / f"{name}-{kind}" / "summary.json").read_text())
    assert summary["flags"] == []


@pytest.mark.slow
def test_two_topics_alternate_as_plain_torch_does(world: Path) -> None:
    """The first steps written out: one sequence at a time, transformers, torch's AdamW."""
    import torch
    from transformers import AutoModelForCausalLM

    folder = world / "target" / "checkpoint"
    model, before = (AutoModelForCausalLM.from_pretrained(folder) for _ in range(2))
    matrix = model.get_parameter(TRAINED)
    optimizer = torch.optim.AdamW([matrix], lr=0.001, weight_decay=0.0)
    retain = Sequences.load(world / "retain.npz")
    forget = {"cyber": Sequences.load(world / "forget.npz"), "bio": Sequences.load(world / "second.npz")}
    records = log(world / "one-sum")
    for step in range(STEPS):
        name = ("cyber", "bio")[step % 2]
        steering, alpha = TOPICS[name]
        batch = ForgetRetainSampler(len(forget[name]), len(retain), 8, 5.0, 0).rows(step // 2)
        control = steering * direction(3, name, worlds.CONFIG["hidden_size"])
        f = torch.cat([hidden_states(model, forget[name], row, 1) - control for row in batch.forget]).square().mean()
        pairs = [[hidden_states(m, retain, row, 1) for m in (model, before)] for row in batch.retain]
        r = alpha * torch.cat([now - then.detach() for now, then in pairs]).square().mean()
        assert records[step]["forget_loss"] == pytest.approx(f.item(), rel=1e-4)
        assert records[step]["retain_loss"] == pytest.approx(r.item(), rel=1e-3, abs=1e-9)
        (matrix.grad,) = torch.autograd.grad(f + r, [matrix])
        optimizer.step()
    assert records[-1]["retain_loss"] > 0
    torch.testing.assert_close(tensors(world / "one-sum")[TRAINED], matrix.detach(), rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_a_killed_run_goes_on_and_its_state_holds_only_what_is_trained(world: Path) -> None:
    from safetensors import safe_open

    rmu_spec(world, "cut", LAYOUTS["pp2"], checkpoint_every=2)
    with pytest.raises(RuntimeError, match="failed"):
        run_ranks(unlearn_and_die, 2, world, "cut")
    (state,) = (world / "cut" / "resume").glob("step-*")
    assert state.name == "step-00000004"
    stored = {}
    for file in sorted(state.glob("*.safetensors")):
        with safe_open(file, framework="pt") as opened:
            stored[file.name.split("-data")[0]] = {key.rsplit(".", 1)[0] for key in opened.keys()}  # noqa: SIM118
    assert stored["tensor-0-pipeline-0"] == set()
    assert stored["tensor-0-pipeline-1"] == {"model.decoder.layers.0.mlp.linear_fc2", "optimizer.0.0.0.state"}
    run_ranks(unlearn_once, 2, world, "cut")
    whole, cut = (world / name / "checkpoint" / "model.safetensors" for name in ("pp2-sum", "cut"))
    assert cut.read_bytes() == whole.read_bytes()


# What a specification may say


def test_coefficients_must_be_those_of_the_topics(tmp_path: Path) -> None:
    def problem(**changes: Any) -> str:
        with pytest.raises(SystemExit) as error:
            read(rmu_spec(tmp_path, "wrong", **changes), UnlearnSpec)
        return str(error.value)

    text = problem(forget_loss={"name": "rmu", "steering": {"cyber": 4.0}})
    assert "forget_loss.steering: has no value for the topic 'bio'; the topics are 'cyber', 'bio'" in text
    text = problem(retain_loss={"name": "rmu-retain", "weight": {"cyber": 1.0, "bio": 1.0, "chem": 1.0}})
    assert "retain_loss.weight: 'chem' is not a topic; the topics are 'cyber', 'bio'" in text
    assert "steering" in problem(forget_loss={"name": "rmu", "steering": 0.0})
    assert "trainable_layers: is missing, and the loss 'rmu' needs it" in problem(trainable_layers=None)
    text = problem(retain_loss={"name": "nll"})
    assert "retain_loss: 'nll' needs the whole model" in text
