"""Every mistake of a configuration is found before anything runs, and said with its place and what is allowed."""

from __future__ import annotations

import copy
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from megatron_ext.schema.safe_yaml import Loader
from pipeline.__main__ import main as validate
from pipeline.benchmarks import data_family
from pipeline.commands.validate import notes
from pipeline.config import sizing
from pipeline.config.checks import weights
from pipeline.config.load import CONFIGS, load
from pipeline.config.located_yaml import ConfigError
from pipeline.config.site import Site
from pipeline.specs import ReportSpec
from pipeline.workflow.plan import Plan
from tests.support.checkpoints import write_checkpoint, write_safetensors

ROOT = CONFIGS.parent
MINI = yaml.load((CONFIGS / "experiments" / "mini.yaml").read_text(), Loader)
MINI["methods"] = [
    *({"method": name} for name in ("ga", "graddiff", "npo")),
    {"method": "blur-npo", "overrides": {"rule": {"gamma": 0.3}}},
]
RELEARN = {"share": 0.5, "steps": 5, "global_batch": 8, "optimizer": {"learning_rate": 1e-4}}
EXPERIMENTS = sorted(file.stem for file in (CONFIGS / "experiments").glob("*.yaml"))


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """Write mini with changes: ``write({"a.b": value})``; the value ``...`` removes a key. ``files`` go beside it."""

    def _write(changes: dict[str, Any] | None = None, **files: dict[str, Any]) -> Path:
        content = copy.deepcopy(MINI)
        _change(content, changes or {})
        (tmp_path / "experiments").mkdir(exist_ok=True)
        for kind, (name, values) in files.items():
            (tmp_path / kind).mkdir(exist_ok=True)
            (tmp_path / kind / f"{name}.yaml").write_text(yaml.safe_dump(values))
        path = tmp_path / "experiments" / "mine.yaml"
        path.write_text(yaml.safe_dump(content, sort_keys=False))
        return path

    return _write


def _change(content: Any, changes: dict[str, Any]) -> None:
    for key, value in changes.items():
        *parents, last = [int(part) if part.isdigit() else part for part in key.split(".")]
        place = content
        for part in parents:
            place = place.setdefault(part, {}) if isinstance(place, dict) else place[part]
        if value is ...:
            del place[last]
        else:
            place[last] = value


def _read(kind: str, name: str, changes: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    values = yaml.load((CONFIGS / kind / f"{name}.yaml").read_text(), Loader)  # as the project reads 1e-5
    _change(values, changes)
    return name, values


def problems(path: Path | str, **options: Any) -> list[str]:
    with pytest.raises(ConfigError) as error:
        load(path, **options)
    return error.value.problems


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_shipped_experiments_are_right(name: str) -> None:
    assert load(name).experiment.name == name


def _use(method: str, **overrides: Any) -> dict[str, Any]:
    return {"method": method, "overrides": overrides}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"seds": [0]}, "seds: unknown key; did you mean 'seeds'? allowed: benchmark, data,"),
        ({"layout": {"pipline": 2}}, "layout.pipline: unknown key; did you mean 'pipeline'?"),
        ({"training.base.optimizer.schedule.knd": 1}, "schedule.knd: unknown key; did you mean 'kind'?"),
        ({"seeds": ["zero"]}, "seeds[0]: 'zero' is not allowed: input should be a valid integer"),
        ({"seeds": 0}, "seeds: 0 is not allowed: input should be a valid list"),
        ({"seeds": [0, 1, 0]}, "seeds: [0, 1, 0] names a seed twice"),
        ({"seeds": []}, "seeds: [] is not allowed: list should have at least 1 item"),
        ({"title": 3}, "title: 3 is not allowed: input should be a valid string; put it in quotes"),
        ({"title": ...}, "title: is missing"),
        ({"name": "a b"}, "name: 'a b' is not allowed"),
        ({"name": "a" * 101}, "is not allowed: string should have at most 100 characters"),
        (
            {
                "robustness": {"relearn": RELEARN | {"variant": "a" * 100}},
                "methods.0": {"method": "ga", "variant": "b" * 100},
            },
            "has 103 characters; allowed: 102, with the variants of 'robustness'",
        ),
        ({"runtime.threads": 10**9}, "runtime.threads: 1000000000 is not allowed: input should be less than or equal"),
        ({"training.base.threads": 10**9}, "training.base.threads: 1000000000 is not allowed: input should be less"),
        ({"unlearning.epochs": 1e300}, "epochs: 1e+300 is not allowed: input should be less than"),
        ({"runtime.timeout_seconds": 1e10}, "timeout_seconds: 10000000000.0 is not allowed: input should be less than"),
        ({"name": "cache"}, "name: 'cache' is not allowed: the folder of results that all experiments share"),
        (
            {"runtime.device": "gpu"},
            "runtime.device: unknown value 'gpu'; did you mean 'cpu'? allowed: auto, cpu, cuda",
        ),
        ({"training.base.steps": -1}, "training.base.steps: -1 is not allowed: input should be greater than or equal"),
        ({"training.base.optimizer.learning_rate": "fast"}, "learning_rate: 'fast' is not allowed: input should be a"),
        ({"training.base.data": {"general": 0.5}}, "training.base.data: shares must be positive and sum to 1"),
        ({"benchmark": "tofoo"}, "benchmark: unknown benchmark 'tofoo'; did you mean 'tofu'? allowed: mini, mini-"),
        ({"model": "mini-lama"}, "model: unknown model 'mini-lama'; did you mean 'mini-llama'?"),
        ({"split": "forget20"}, "split: unknown split 'forget20'; did you mean 'forget10'? allowed: forget10"),
        (
            {"methods.0": "np"},
            "methods[0]: unknown method 'np'; did you mean 'npo'? allowed: adaptive-rmu, altpo, blur-npo,",
        ),
        ({"methods.1.metod": "x"}, "methods[1].metod: unknown key; did you mean 'method'?"),
        ({"methods": []}, "methods: [] is not allowed"),
        ({"methods.0": 7}, "methods[0]: 7 is not allowed: input should be a valid string; put it in quotes"),
        ({"methods.3.overrides.rule.gama": 1}, "methods[3].overrides.rule.gama: unknown key; did you mean 'gamma'?"),
        (
            {"methods.3.overrides.rule.gamma": 0},
            "methods[3].overrides.rule.gamma: 0 is not allowed: input should be greater",
        ),
        ({"methods.3.overrides.forget": "ga"}, "forget: 'ga' is not allowed: a mapping of keys to values is needed"),
        (
            {"methods.3.overrides.rule": {"name": "blurr"}},
            "unknown value 'blurr'; did you mean 'blur'? allowed: blur, gru, ngdiff,",
        ),
        (
            {"methods.3.overrides.retain": None},
            "methods[3].overrides.retain: is missing, and the rule 'blur' needs one",
        ),
        ({"methods.2.method": "blur-npo"}, "methods[3]: 'blur-npo' is there twice; give one of them another 'variant'"),
        ({"unlearning.epocs": 3}, "unlearning.epocs: unknown key; did you mean 'epochs'?"),
        (  # also where every method has its own
            {"unlearning.optimizer": 5, "methods": [_use("npo", training={"optimizer": {"learning_rate": 1e-5}})]},
            "unlearning.optimizer: 5 is not allowed: a mapping of keys to values is needed",
        ),
        (
            {"unlearning.steps_per_epoch": "epoch"},
            "unlearning.steps_per_epoch: unknown value 'epoch'; allowed: pass, trainer",
        ),
        (
            {"unlearning.steps_per_epoch": "trainer"},
            "npo.yaml:8: training.accumulation: is missing, which steps_per_epoch: 'trainer' needs",
        ),
        ({"unlearning.accumulation": 4}, "unlearning.accumulation: 4 without steps_per_epoch: 'trainer'"),
        (
            {"unlearning.steps_per_epoch": "trainer", "unlearning.accumulation": 3},
            "unlearning.accumulation: 3 does not divide global_batch: 8",
        ),
        ({"unlearning.micro_batch": 3}, "unlearning.global_batch: 8 is not a multiple of 1 (data-parallel ranks) x 3"),
        ({"training.base.micro_batch": 5}, "training.base.global_batch: 64 is not a multiple of 1"),
        ({"layout": {"data": 3}}, "unlearning.global_batch: 8 is not a multiple of 3 (data-parallel ranks)"),
        ({"layout": {"tensor": 3}}, "layout: tensor: 3 does not divide the model's 4 (attention heads)"),
        ({"layout": {"tensor": 3}}, "layout: tensor: 3 does not divide the model's 4 (key-value heads)"),
        ({"layout": {"tensor": 3}}, "layout: tensor: 3 does not divide the model's 352 (feed-forward width)"),
        ({"layout": {"pipeline": 3}}, "layout: pipeline: 3 stages, but the model has only 2 layers"),
        (
            {"layout": {"pipeline": 2, "pipeline_split": [1, 2]}},
            "pipeline_split: [1, 2] sums to 3; the model has 2 layers",
        ),
        ({"layout": {"pipeline_split": [1, 1]}}, "pipeline_split: [1, 1] has 2 entries; pipeline: 1 needs 1"),
        (
            {"layout": 3},
            "layout: model 'mini-llama' has no layout for 3 ranks; allowed: 1, 2, 4, and mappings as {tensor: 3}",
        ),
        ({"data.max_length": 1024}, "data.max_length: 1024 tokens; the model's context is 512"),
        ({"training.target.data": {"ful": 1.0}}, "training.target.data.ful: unknown set; did you mean 'full'?"),
        (
            {"layout": {"data": 2, "distributed_optimizer": True}, "unlearning.optimizer.name": "sgd"},
            "unlearning.optimizer.name: 'sgd' does not work with the layout's distributed_optimizer",
        ),
        (
            {"evaluation.options": {"max_new_tokens": 512}},
            "evaluation.options: an answer may have 512 new tokens; the model's context is 512",
        ),
        ({"evaluation.options": {"max_new": 5}}, "evaluation.options.max_new: unknown key; did you mean 'max_new_t"),
        ({"evaluation.options": {"max_new_tokens": 0}}, "evaluation.options.max_new_tokens: 0 is not allowed"),
        ({"evaluation.options": {"family": "tofu"}}, "evaluation.options.family: unknown key; the benchmark file's"),
        ({"training.retrain.data": {"full": 1.0}}, "training.retrain.data.full: holds the forget set"),
        ({"training.target": ...}, "training: target: is missing, and model 'mini-llama' has no published target"),
        (
            {"robustness": {"relern": {}}},
            "robustness.relern: unknown key; did you mean 'relearn'? allowed: quantise",
        ),
        ({"robustness": {"relearn": {"share": 0.5}}}, "robustness.relearn.steps: is missing"),
        ({"robustness": {"relearn": {**RELEARN, "share": 1.5}}}, "robustness.relearn.share: 1.5 is not allowed"),
        ({"robustness": {"relearn": {**RELEARN, "step": 1}}}, "robustness.relearn.step: unknown key; did you mean 'st"),
        ({"robustness": {"relearn": [RELEARN, RELEARN]}}, "robustness.relearn: 'relearn' is there twice; give one of"),
        ({"robustness": {"relearn": {**RELEARN, "micro_batch": 3}}}, "robustness.relearn.global_batch: 8 is not a mul"),
        ({"robustness": {"relearn": [{**RELEARN, "micro_batch": 3}]}}, "robustness.relearn[0].global_batch: 8 is not"),
        ({"robustness": {"quantise": ["int5"]}}, "robustness.quantise[0]: unknown value 'int5'; did you mean 'int"),
        ({"robustness": {"quantise": ["nf4", "nf4"]}}, "robustness.quantise: 'nf4' is there twice; give one of them"),
        ({"robustness": {"quantise": [{"scheme": "int8", "group": 64}]}}, "quantise[0].group: int8 has a scale a row"),
        (
            {"robustness": {"quantise": [{"scheme": "int4", "backend": "bitsandbytes"}]}},
            "robustness.quantise[0].backend: bitsandbytes has no scheme 'int4'; allowed: 'auto', 'builtin'",
        ),
    ],
)
def test_a_mistake_is_named_with_its_place(write: Callable[..., Path], changes: dict[str, Any], expected: str) -> None:
    path = write(changes)
    found = problems(path)
    assert any(expected in problem for problem in found), found
    assert all(".yaml:" in problem for problem in found)


FIRST_BLOCK = {"up_to": 0, "layers_to_transform": [0]}


@pytest.mark.parametrize(
    ("use", "changes", "expected"),
    [
        (_use("rmu"), {}, "trainable_layers.up_to: 7 is none of the model's 2 layers; allowed: 0 to 1"),
        (
            _use("rmu", trainable_layers=FIRST_BLOCK),
            {"layout": {"pipeline": 2}},
            "overrides.trainable_layers.up_to: 0: layers 0 to 0 are built, fewer than the layout's 2 pipeline stages",
        ),
        (
            _use("rmu", trainable_layers={"up_to": 0}),
            {},
            "rmu.yaml:10: trainable_layers.layers_to_transform: [0, 1, 2, 3, 4, 5, 6, 7] goes beyond",
        ),
        (
            _use("rmu", trainable_layers={"up_to": 0, "layers_to_transform": [1]}),
            {},
            "overrides.trainable_layers.layers_to_transform: [1] goes beyond up_to: 0; allowed: 0 to 0",
        ),
        (_use("rmu", trainable_layers=None), {}, "overrides.trainable_layers: is missing, and the loss 'rmu' needs it"),
        (
            _use("rmu", trainable_layers=FIRST_BLOCK, forget={"steering": {"bio": 1.0}}),
            {},
            "overrides.forget.steering: has no value for the topic 'forget'",
        ),
        (
            _use("rmu", trainable_layers=FIRST_BLOCK),
            {"unlearning.validation": {"every_steps": 5}},
            "unlearning.validation: is given, but the method's 'trainable_layers' builds layers 0 to 0 only, which",
        ),
        (
            _use("rmu", trainable_layers=FIRST_BLOCK, training={"validation": {"every_epochs": 1.0}}),
            {"unlearning.validation": None},
            "overrides.training.validation: is given, but the method's 'trainable_layers' builds layers 0 to 0 only",
        ),
        (
            _use("npo", training={"validation": {"every_steps": 5}}),
            {"unlearning.validation": {"every_epochs": 1.0}},
            "validation: give exactly one of 'every_steps' and 'every_epochs'",
        ),
        (
            _use("npo", training={"validation": {"select": "best"}}),
            {"unlearning.validation": {"every_epochs": 1.0}},
            "overrides.training.validation.select: unknown value 'best'; allowed: last, best-on-validation",
        ),
        (
            _use("npo", training={"lora": {"rank": 4, "alpha": 8.0, "targets": ["q_proj", "qkv_proj"]}}),
            {},
            "training.lora.targets: the model has no matrices qkv_proj; allowed: q_proj, k_proj, v_proj, o_proj, gate",
        ),
        (
            _use(
                "rmu",
                trainable_layers=FIRST_BLOCK,
                training={"lora": {"rank": 4, "alpha": 8.0, "targets": ["q_proj"]}},
            ),
            {},
            "training.lora.targets: is given, but 'trainable_layers' names matrices already; allowed: null",
        ),
        (
            _use("npo", training={"lora": {"rank": 4, "alpha": 8.0}}),
            {"runtime.precision": "bf16", "runtime.kernels": "te", "runtime.device": "cuda"},
            "runtime.kernels: 'te' fuses norms into the layers that adapters lie beside; allowed: 'torch'",
        ),
        (_use("npo", trainable_layers={"up_to": 0}), {}, ": forget: 'npo' needs the whole model"),
        (_use("npo", retain={"name": "npo"}), {}, "overrides.retain: 'npo' is a forget loss"),
        (
            _use("idk-dpo", preferred_answers=None),
            {},
            "preferred_answers: is missing, and the loss 'dpo' needs it; allowed: idk",
        ),
        (_use("idk-dpo", preferred_answers="idc"), {}, "preferred_answers: unknown value 'idc'; did you mean 'idk'?"),
        (
            _use("npo", preferred_answers="idk"),
            {},
            "overrides.preferred_answers: 'idk' is given, but the loss 'npo' reads none",
        ),
        (
            _use("pdu", rule={"epsilon": None, "tolerance": 0.5}, retain={"name": "kl"}),
            {},
            "overrides.retain: must be 'nll' where the rule 'primal-dual' measures it",
        ),
        (
            _use("pdu", rule={"tolerance": 0.5}),
            {},
            "overrides.rule.tolerance: 0.5 beside epsilon: 0.3; allowed is one of the two",
        ),
        (_use("pdu", rule={"epsilon": None}), {}, "overrides.rule.epsilon: is missing; give it or 'tolerance'"),
        (
            _use("ofmu", rule={"highest_penalty": 1e-3}),
            {},
            "overrides.rule.highest_penalty: 0.001 is below penalty: 0.01",
        ),
        (
            _use("pdu-open-unlearning", training={"micro_batch": 2}),
            {},
            "unlearning.diagnostics: true; with dual_update 'micro-batch' ",
        ),
        (_use("ngdiff-auto"), {}, "unlearning.warmup_epochs: 1.0 with the rule's automatic_rate; allowed is 0.0"),
        (
            _use("ngdiff-auto", training={"optimizer": {"name": "adamw", "learning_rate": 0.1}}),
            {},
            "overrides.training.optimizer.name: 'adamw' with the rule's automatic_rate; allowed is 'sgd'",
        ),
        (
            _use("npo", training={"max_steps": 1}),
            {},
            "unlearning.warmup_epochs: 1 with a run of one step: the first of a warm-up has the learning rate 0, and "
            "nothing would change; allowed: 0, or more steps (epochs, max_steps, global_batch)",
        ),
        (
            _use("npo", training={"epochs": 1.0, "global_batch": 80, "warmup_epochs": 0.6}),
            {},
            "overrides.training.warmup_epochs: 0.6 with a run of one step",
        ),
        (
            _use("npo", training={"epochs": 0.1, "warmup_epochs": 0.0, "optimizer": {"schedule": {"warmup_steps": 3}}}),
            {},
            "overrides.training.optimizer.schedule.warmup_steps: 3 with a run of one step",
        ),
        (
            _use("npo"),
            {"training.target.steps": 1},
            "training.target.optimizer.schedule.warmup_steps: 35 with a run of one step: the first of a warm-up has "
            "the learning rate 0, and nothing would change; allowed: 0, or more steps",
        ),
        (_use("ofmu"), {"runtime.precision": "bf16"}, ": runtime.precision: 'bf16'; the rule 'ofmu' "),
        (_use("task-vector", forget={"name": "ga"}), {}, "overrides.forget: 'ga'; the rule 'task-vector' fine-tunes"),
        (_use("npo"), {"layout": {"sequence_parallel": True}}, "layout.sequence_parallel: needs tensor > 1"),
        (
            _use("npo"),
            {"runtime.recompute_activations": 1},
            "runtime.recompute_activations: 1 is not allowed: input should be a valid boolean",
        ),
        (_use("npo"), {"training.target.data": {"idk": 1.0}}, "training.target.data.idk: unknown set"),
    ],
)
def test_what_does_not_fit_in_a_method_is_named_with_its_place(
    write: Callable[..., Path], use: dict[str, Any], changes: dict[str, Any], expected: str
) -> None:
    found = problems(write({"methods": [use], **changes}))
    assert any(expected in problem for problem in found), found
    assert all(".yaml:" in problem for problem in found)


def test_what_does_not_go_with_topics_in_turn_is_found_before_the_plan() -> None:
    """Only this checks methods against the split's own topics, by number and by name."""
    found = problems(
        "wmdp-zephyr-7b",
        settings=(
            "unlearning.steps_per_epoch=trainer",
            "unlearning.accumulation=4",
            "methods.rmu-wmdp.forget.steering={bio: 6.5}",
        ),
    )
    assert any("steps_per_epoch: 'trainer' with 2 topics; allowed: 'pass'" in problem for problem in found), found
    assert any("steering: has no value for the topic 'cyber'; the topics are 'bio', 'cyber'" in p for p in found)


def test_a_relearning_batch_has_a_row_of_every_topic(
    write: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    pairs = {name: ("forget", "retain") for name in ("one", "another", "a third")}
    monkeypatch.setattr(type(data_family("tofu")), "topics", lambda self, split: pairs)
    found = problems(write({"robustness": {"relearn": {**RELEARN, "global_batch": 2}}}))
    assert len(found) == 1 and "robustness.relearn.global_batch: 2 is less than the 3 topics" in found[0]
    assert load(write({"robustness": {"relearn": {**RELEARN, "global_batch": 3}}})).layout.ranks == 1


def test_no_answers_are_sampled_where_the_answers_first_token_stands_before_the_labels(
    write: Callable[..., Path],
) -> None:
    model = _read("models", "mini-llama", {"template": "plain-open-unlearning"})
    found = problems(write({"methods": ["altpo", "idk-dpo"]}, models=model))
    assert len(found) == 1 and "preferred_answers: answers cannot be sampled" in found[0]


def test_all_mistakes_are_listed_at_once(write: Callable[..., Path]) -> None:
    found = problems(write({"seds": 1, "title": 3, "benchmark": "x", "model": "y", "methods.0": "np"}))
    assert len(found) == 5


def test_a_problem_points_at_its_line(write: Callable[..., Path]) -> None:
    path = write({"title": 3})
    line = path.read_text().splitlines().index("title: 3") + 1
    assert problems(path)[0].startswith(f"{path}:{line}: title: ")


def test_too_many_cpu_ranks(write: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 1)
    assert any(
        "8 ranks are 8 processes here; at most 4 a core, 4" in p for p in problems(write({"layout": {"data": 8}}))
    )


@pytest.mark.parametrize(("visible", "right"), [("0", False), ("0,1", True), ("", True)])
def test_ranks_on_gpus(write: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, visible: str, right: bool) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    path = write({"layout": 2, "runtime.device": "cuda"})
    if right:
        assert load(path).layout.ranks == 2
    else:
        assert any("2 ranks, but this machine shows 1 GPU" in problem for problem in problems(path))


@pytest.mark.parametrize(
    ("changes", "site", "key", "message"),
    [
        ({"layout": {"data": 11}}, {}, "layout", "11 ranks need 2 nodes, and do not divide evenly over them"),
        ({"runtime.device": "cuda"}, {"gpus_per_node": 0}, "runtime.device", "'cuda', but gpus_per_node is 0"),
        ({"runtime.threads": 9}, {"cpus_per_node": 8}, "runtime.threads", "9 of each rank, but cpus_per_node is 8"),
    ],
)
def test_ranks_that_a_clusters_nodes_cannot_hold(
    write: Callable[..., Path], changes: dict[str, Any], site: dict[str, Any], key: str, message: str
) -> None:
    path = write({"runtime.device": "auto"} | changes)
    with pytest.raises(ConfigError) as caught:
        load(path, None, Site(**site))
    assert any(re.search(rf"mine\.yaml:\d+: {key}: {message}", problem) for problem in caught.value.problems)


def test_a_plan_for_a_cluster_does_not_look_at_this_machine(
    write: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    monkeypatch.setattr(os, "cpu_count", lambda: 1)
    changes = {"layout": {"tensor": 4, "data": 4}, "methods": ["ga"]}
    for device in ("auto", "cuda", "cpu"):
        path = write({**changes, "runtime.device": device})
        assert load(path, None, Site()).layout.ranks == 16
        assert problems(path)


def test_an_nvidia_smi_that_hangs_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def hang(*_: Any, timeout: float, **__: Any) -> None:
        raise subprocess.TimeoutExpired("nvidia-smi", timeout)

    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(sizing.shutil, "which", lambda _: "nvidia-smi")
    monkeypatch.setattr(sizing.subprocess, "run", hang)
    sizing._listed_gpus.cache_clear()
    assert sizing.visible_gpus() is None
    sizing._listed_gpus.cache_clear()


def test_uneven_layers_need_a_split(write: Callable[..., Path]) -> None:
    changes = {"model": "tofu-small-llama", "layout": {"pipeline": 2}}
    assert "for example pipeline_split: [2, 1]" in problems(write(changes))[0]
    changes["layout"] = {"pipeline": 2, "pipeline_split": [1, 2]}
    assert load(write(changes)).layout.pipeline_split == [1, 2]


def test_data_root(tmp_path: Path) -> None:
    assert "is not a folder" in problems("tofu-small", data_root=tmp_path / "none")[0]
    for name in ("full", "forget10", "retain90", "forget10_perturbed", "retain_perturbed", "world_facts_perturbed"):
        (tmp_path / f"{name}.jsonl").write_text("{}\n\n{}\n")
    lacking = problems("tofu-small", data_root=tmp_path)
    assert len(lacking) == 2
    for name, message in zip(("real_authors_perturbed", "holdout10"), lacking, strict=True):
        assert f"neither {name}.json nor {name}.jsonl" in message
        (tmp_path / f"{name}.json").write_text("{}\n")
    config = load("tofu-small", data_root=tmp_path)
    assert config.source.kind == "folder"
    assert config.forget_rows == 2


def test_what_compares_with_retrain_needs_one(write: Callable[..., Path]) -> None:
    (problem,) = problems(write({"training.retrain": ...}))
    assert "training: retrain: is missing, and model 'mini-llama' has no published one: 'privleak' compares" in problem


def test_synthetic_data_takes_no_data_root(tmp_path: Path) -> None:
    assert "data_root has no meaning" in problems("mini", data_root=tmp_path)[0]


def test_checkpoint_folders_must_be_complete(write: Callable[..., Path], tmp_path: Path) -> None:
    folder = tmp_path / "model"
    changes = {"checkpoints": {"target": {"folder": str(folder)}}}
    name, model = _read("models", "mini-llama", changes)
    path = write({"training": {}, "evaluation": {"options": {"privleak": False}}}, models=(name, model))

    def problem() -> str:
        (found,) = problems(path)
        return found

    assert "checkpoints.target.folder" in problem() and "is not a folder" in problem()
    folder.mkdir()
    assert "has no config.json" in problem()
    write_checkpoint(folder, {**model["architecture"], "hidden_size": 64})
    assert "its config.json has other sizes than the planned architecture" in problem()
    (folder / "config.json").write_text(json.dumps(model["architecture"]))
    assert "'model.embed_tokens.weight' has the shape [2048, 64]; its config.json asks for [2048, 128]" in problem()
    (folder / "model.safetensors").unlink()
    assert "has no *.safetensors file" in problem()
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {"a": "model-1.safetensors"}}')
    assert "lacks model-1.safetensors" in problem()
    (folder / "model.safetensors.index.json").unlink()
    shape = sizing.Shape.of(model["architecture"])
    for more in ("model.layers.0.self_attn.q_proj.bias", f"model.layers.{shape.layers}.mlp.up_proj.weight"):
        write_safetensors(folder / "model.safetensors", {**weights.tensors(shape), more: (128,)})
        assert f"its weights hold {more!r}, which its config.json does not ask for" in problem()
    write_checkpoint(folder, model["architecture"])
    (folder / "tokenizer.json").unlink()
    assert "has no tokenizer file" in problem()
    (folder / "tokenizer.json").write_text("{}")
    assert load(path).model.published("target", "forget10") is not None

    (folder / "model.safetensors").rename(folder / "model-1.safetensors")
    for broken in ("{", "[]", '{"weight_map": 1}', '{"weight_map": {"a": 1}}', "{}"):
        (folder / "model.safetensors.index.json").write_text(broken)
        assert "cannot be taken: " in problem() and "model.safetensors.index.json: " in problem()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (b"name: caf\xe9\n", "mine.yaml: not UTF-8 text, from byte 9 on"),
        (b"name: a\ntitle: \x00\n", "mine.yaml:2: not YAML: special characters are not allowed"),
        (b"title: {{ x }}\n", "mine.yaml:1: a key must be text; a text that begins with '{' or '[' needs quotes"),
        (b"data: &a {x: *a}\n", "mine.yaml:1: an alias stands inside of what it stands for"),
        (b"seeds: &a [*a]\n", "mine.yaml:1: an alias stands inside of what it stands for"),
        (b"1: 1\n", "mine.yaml:1: [1]: unknown key; allowed: benchmark, data,"),
        (b"data: {1: 1}\n", "mine.yaml:1: data[1]: unknown key; allowed: bad_rows, max_length"),
        (b"yes: 1\n", "mine.yaml:1: yes: a key must be text; this one needs quotes"),
        (b"null: 1\n", "mine.yaml:1: null: a key must be text; this one needs quotes"),
        (b"1.5: 1\n", "mine.yaml:1: 1.5: a key must be text; this one needs quotes"),
    ],
)
def test_a_file_that_cannot_be_read_is_a_problem_too(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: bytes, expected: str
) -> None:
    path = tmp_path / "mine.yaml"
    path.write_bytes(text)
    assert validate(["validate", str(path)]) == 2
    assert expected in capsys.readouterr().err


def test_checkpoints_and_a_tokenizer_trained_here_do_not_mix(write: Callable[..., Path]) -> None:
    hub = {"hub": "a/b"}

    def found(training: list[str], checkpoints: dict[str, Any]) -> list[str]:
        model = _read("models", "mini-llama", {"checkpoints": checkpoints})
        left_out = {f"training.{which}": ... for which in ("base", "target", "retrain") if which not in training}
        path = write(left_out, models=model)
        try:
            load(path)
        except ConfigError as error:
            return [problem.split(": ", 1)[1] for problem in error.problems]
        return []

    message = "its tokenizer is trained on the data, but {} is a published checkpoint with its own"
    mixed = [f"training.base: {message.format('target')}"]
    assert found(["base", "retrain"], {"target": hub}) == mixed
    mixed = [f"training.target: {message.format('retrain')}"]
    assert found(["target"], {"retrain": {"forget10": hub}}) == mixed
    # One tokenizer for all: the base's, the target's, or the one trained here.
    assert found(["target", "retrain"], {"base": hub}) == []
    assert found(["retrain"], {"target": hub}) == []
    assert found(["base"], {"target": hub, "retrain": {"forget10": hub}}) == []
    assert found(["base", "target", "retrain"], {"target": hub}) == []


def test_data_without_background_authors_have_no_background(write: Callable[..., Path]) -> None:
    benchmark = _read("benchmarks", "mini", {"source.background_authors": 0})
    found = problems(write(benchmarks=benchmark))
    assert len(found) == 1
    assert "training.base.data.background: unknown set" in found[0]


def test_answers_that_the_context_may_cut_short_are_noted(write: Callable[..., Path]) -> None:
    note = "note: data.max_length 128 + 385 new tokens of an answer is more than the model's context of 512"
    assert any(note in line for line in notes(load(write({"evaluation.options": {"max_new_tokens": 385}}))))
    assert not any("context" in line for line in notes(load(write({"evaluation.options": {"max_new_tokens": 384}}))))


def test_gpus_that_are_not_here_are_noted(write: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    note = "note: this machine shows no GPUs, so their number was not checked"
    assert note in notes(load(write({"layout": 2, "runtime.device": "cuda"})))
    assert note not in notes(load(write()))


def test_what_a_family_lacks_is_said_before_anything_runs(write: Callable[..., Path]) -> None:
    """Matrices that are rounded, trained or adapted by names that the model's layers have not."""
    mixed = {"num_local_experts": 4, "num_experts_per_tok": 2, "head_dim": 32, "rope_theta": 1e4}
    mixed |= {"rope_scaling": {"rope_type": "default"}}
    latent = {"kv_lora_rank": 8, "qk_nope_head_dim": 8, "qk_rope_head_dim": 4, "v_head_dim": 8, "q_lora_rank": None}
    latent |= {"n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 8}
    one = {"architecture.architectures": ["GptOssForCausalLM"], **{f"architecture.{k}": v for k, v in mixed.items()}}
    two = {"architecture.architectures": ["DeepseekV2ForCausalLM"], "architecture.num_key_value_heads": None}
    two |= {f"architecture.{k}": v for k, v in latent.items()}
    rounded = {"robustness": {"quantise": ["int8"]}, "model": "mini-llama"}
    (found,) = problems(write(rounded, models=_read("models", "mini-llama", one)))
    assert "robustness.quantise: experts that lie in one tensor" in found
    part = {"up_to": 0, "layers_to_transform": [0], "target_modules": ["qkv_proj"]}
    method = {"method": "rmu", "overrides": {"trainable_layers": part, "training": {"validation": None}}}
    found = problems(write({"methods": [method]}, models=_read("models", "mini-llama", two)))[0]
    assert "target_modules: 'qkv_proj' is no matrix of latent attention" in found
    adapted = {"methods": ["npo"], "unlearning.lora": {"rank": 2, "alpha": 2.0, "targets": ["q_proj"]}}
    found = problems(write(adapted, models=_read("models", "mini-llama", two)))[0]
    assert "lora.targets: a mixture of experts has no adapters at q_proj; allowed: o_proj" in found


def test_other_files_are_checked_too(write: Callable[..., Path]) -> None:
    method = ("npo", {**_read("methods", "npo", {})[1], "name": "npo2", "lr": 1})
    assert any("methods/npo.yaml:" in p and "lr: unknown key" in p for p in problems(write(methods=method)))
    benchmark = _read("benchmarks", "mini", {"splits": {"forget10": 81}})
    assert any("81 rows are stated; the source makes 80" in p for p in problems(write(benchmarks=benchmark)))
    model = _read("models", "mini-llama", {"architecture.architectures": ["GPT2LMHeadModel"]})
    assert any("'GPT2LMHeadModel'] is not supported" in p for p in problems(write(models=model)))
    model = _read("models", "mini-llama", {"tokenizer.vocab_size": 4096})
    assert any("4096 is more than the architecture's vocab_size, 2048" in p for p in problems(write(models=model)))


@pytest.mark.parametrize("given", [{}, {"hub": "a/b", "folder": "c"}, {"folder": "c", "revision": "main"}])
def test_a_checkpoint_is_a_repository_or_a_folder(write: Callable[..., Path], given: dict[str, str]) -> None:
    model = _read("models", "mini-llama", {"checkpoints": {"base": given}})
    assert any("models/mini-llama.yaml:" in p and "checkpoints.base" in p for p in problems(write(models=model)))


def test_published_numbers_name_known_metrics(write: Callable[..., Path]) -> None:
    table = {"source": "s", "model": "m", "split": "forget10", "values": {"npo": {"forget_qualty": 1.0}}}
    benchmark = _read("benchmarks", "mini", {"published": [table]})
    found = problems(write(benchmarks=benchmark, models=_read("models", "mini-llama", {})))
    assert "unknown metric; did you mean 'forget_quality'?" in found[0]


def test_a_metric_that_has_published_numbers_can_be_switched_off() -> None:
    """They are left out of the report then, and no mistake of the benchmark's file."""
    config = load("tofu-small-forget05", settings=["evaluation.options.memorisation=false"])
    assert any("extraction_strength" in row for table in config.benchmark.published for row in table.values.values())
    report = Plan(config, Path("results")).jobs["report"].spec
    assert isinstance(report, ReportSpec) and report.published
    assert "extraction_strength" not in {number.metric for number in report.published}


def test_published_numbers_name_known_methods_once(write: Callable[..., Path]) -> None:
    values = {"npo-blur": {"model_utility": 1.0}, "nop": {"model_utility": 1.0}}
    table = {"source": "s", "model": "m", "split": "forget10", "values": values}
    benchmark = _read("benchmarks", "mini", {"published": [table, {**table, "values": {"npo-blur": {}}}]})
    found = problems(write(benchmarks=benchmark))
    assert [problem.partition(": ")[2].partition(":")[0] for problem in found] == [
        "published[0].values.nop",
        "published[1].values.npo-blur",
    ]
    assert "unknown method; did you mean 'npo'?" in found[0] and "'s' has numbers of it twice" in found[1]


def test_numbers_of_another_model_are_asked_for_by_its_name(write: Callable[..., Path]) -> None:
    """Only of models that somebody has numbers of, on the experiment's split; at mini scale there are none."""
    tables = [
        {"source": "s", "model": model, "split": split, "values": {"npo": {"model_utility": 0.5}}}
        for model, split in (("large", "forget10"), ("larger", "forget05"), ("mini-llama", "forget10"))
    ]
    benchmark = _read("benchmarks", "mini", {"published": tables})
    path = write({"report": {"published_of": "large"}}, benchmarks=benchmark)
    assert load(path).experiment.report.published_of == "large"
    small = load("tofu-small-forget10", settings=["scale=mini"]).experiment
    assert small.report.published_of is None and small.seeds == [0, 1, 2]
    (said,) = problems(write({"report": {"published_of": "larger"}}, benchmarks=benchmark))
    assert "report.published_of: 'mini' has no published numbers of 'larger' as another model on forget10" in said
    assert "did you mean 'large'?" in said
    (said,) = problems(write({"report": {"published_of": "mini-llama"}}, benchmarks=benchmark))
    assert "as another model on forget10" in said and "allowed: large" in said  # its own stand there anyway


def test_unknown_experiment_name() -> None:
    (said,) = problems("minii")
    assert "did you mean 'mini'? allowed: " in said and " mini, mini-all, " in said


def test_methods_take_defaults_experiment_and_overrides_in_that_order(write: Callable[..., Path]) -> None:
    config = load(
        write(
            {
                "unlearning": {"epochs": 3, "optimizer": {"weight_decay": 0.5}},
                "methods": ["npo", {"method": "npo", "variant": "b", "overrides": {"training": {"epochs": 4}}}],
            }
        )
    )
    plain, variant = config.runs
    assert (plain.id, variant.id) == ("npo", "npo-b")
    assert (plain.method.training.epochs, variant.method.training.epochs) == (3, 4)
    optimizer = variant.method.training.optimizer
    assert (optimizer.weight_decay, optimizer.learning_rate, optimizer.clip_norm) == (0.5, 1e-5, 1.0)


def test_validate_exits_with_2_and_prints_every_problem(write: Callable[..., Path]) -> None:
    path = write({"seds": 1, "title": 3})
    command = [sys.executable, "-m", "pipeline", "validate", str(path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stdout == ""
    assert "seds: unknown key" in done.stderr and "title: 3" in done.stderr and "2 problems" in done.stderr
    assert "Traceback" not in done.stderr


def test_validate_shows_what_a_clusters_jobs_ask_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "site.yaml").write_text("gpus_per_node: 8\n")
    assert validate(["validate", "tofu-llama-3.1-70b", "--site", str(tmp_path / "site.yaml")]) == 0
    lines = {" ".join(line.split()) for line in capsys.readouterr().out.splitlines()}
    assert "step folder ranks memory/rank nodes memory/node time work" in lines
    assert "train models/target 32 49.3 GiB 4 x 8 GPUs 458.8 GiB 2:20 625 steps of 32" in lines
    assert "report report 1 - 1 x 1 rank 2.5 GiB 0:10 21 jobs' results" in lines
    assert "fetch models/base 1 - here - - published checkpoint" in lines
    assert not any("slow" in line or "were not checked" in line for line in lines)


def test_validate_notes_tensor_parallel_ranks_on_more_than_one_node(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "site.yaml").write_text("gpus_per_node: 4\n")
    assert validate(["validate", "tofu-llama-3.1-70b", "--site", str(tmp_path / "site.yaml")]) == 0
    assert "note: tensor-parallel ranks (8) are on more than one node of 4: slow" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("site", "message"),
    [
        ("gpus: 8", "site.yaml:1: gpus: unknown key"),
        ("memory_per_node_mb: 100000", "unlearned/blur-npo/seed-0 needs 537107 on each node"),
    ],
)
def test_validate_refuses_a_site_that_will_not_do(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], site: str, message: str
) -> None:
    (tmp_path / "site.yaml").write_text(f"{site}\n")
    assert validate(["validate", "tofu-llama-3.1-70b", "--site", str(tmp_path / "site.yaml")]) == 2
    printed = capsys.readouterr()
    assert message in printed.err and not printed.out


def test_validate_is_quick_and_prints_the_jobs() -> None:
    program = """import sys, time
from pipeline.__main__ import main
main(["validate", "mini"])
heavy = {"torch", "transformers", "huggingface_hub", "snakemake", "megatron"} & set(sys.modules)
assert not heavy, heavy
assert time.process_time() < 3, time.process_time()  # not wall time: other tests may run beside this one
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for text in (
        "unlearned/blur-npo/seed-0",
        "10 epochs, 100 steps of 8",
        "29 jobs",
        "0.664 million",
        "nothing is wrong",
    ):
        assert text in done.stdout
