"""An experiment becomes jobs whose specifications are complete and whose inputs other jobs write."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import TypeAdapter

from megatron_ext.config import Batching, Layout, Runtime
from megatron_ext.data.sampling import ForgetRetainSampler, TopicRoundRobin
from megatron_ext.schema.safe_yaml import Loader
from megatron_ext.specs import QuantiseSpec, TrainSpec, UnlearnSpec
from pipeline.benchmarks.tofu.data import DATA
from pipeline.benchmarks.tofu.synthetic import SyntheticSource
from pipeline.config.load import CONFIGS, load
from pipeline.config.memory import held, lasting, stage_parameters, trainable_parameters
from pipeline.config.sizing import Shape, layout_problems
from pipeline.config.workload import Workload
from pipeline.data.settings import BpeTokenizer, FetchedSource, FolderTokenizer
from pipeline.specs import AnyStepSpec, FetchDataSpec, FetchSpec, PrepareSpec
from pipeline.steps.prepare import prepare
from pipeline.workflow.jobs import canonical
from pipeline.workflow.plan import Plan
from pipeline.workflow.unlearning_jobs import steps_per_epoch, unlearning_steps
from pipeline.workflow.work import describe
from tests.support.checkpoints import write_checkpoint


def plan(name: str = "mini", changes: dict[str, Any] | None = None, folder: Path | None = None, **options: Any) -> Plan:
    if changes is None:
        return Plan(load(name, **options), Path("out"))
    content = yaml.load((CONFIGS / "experiments" / f"{name}.yaml").read_text(), Loader) | changes
    path = folder / "changed.yaml"
    path.write_text(yaml.safe_dump(content))
    return Plan(load(path, **options), Path("out"))


def tofu_files() -> list[str]:
    return [name for (name,) in plan("tofu-small").data_files]


@pytest.fixture
def local(tmp_path: Path) -> Plan:
    """TOFU from a local folder, unlearned from a local checkpoint; beside their files lie others that nobody reads."""
    data, model = tmp_path / "data", tmp_path / "model"
    data.mkdir()
    for name in (*tofu_files(), "forget05"):
        (data / f"{name}.jsonl").write_text("{}\n" * 70)
    values = yaml.load((CONFIGS / "models" / "tofu-small-llama.yaml").read_text(), Loader)
    write_checkpoint(model, values["architecture"])
    (model / "notes.md").write_text("")
    values["checkpoints"] = {"target": {"folder": str(model)}}
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "tofu-small-llama.yaml").write_text(yaml.safe_dump(values))
    (tmp_path / "experiments").mkdir()
    changes = {"training": {}, "evaluation": {"options": {"privleak": False}}}  # which would need retrain
    return plan("tofu-small", changes, tmp_path / "experiments", data_root=data)


def test_files_of_the_user_are_inputs(local: Plan, tmp_path: Path) -> None:
    """A change in them is a reason to run the jobs that read them again."""
    model = {tmp_path / "model" / name for name in ("config.json", "model.safetensors", "tokenizer.json")}
    assert set(local.jobs["models/target"].inputs) == model
    data = {tmp_path / "data" / f"{name}.jsonl" for name in tofu_files()}
    assert set(local.jobs["data/tofu"].inputs) == data | {Path("out/tofu-small/models/target/checkpoint")}


def test_steps_are_counted_as_the_program_counts_them(local: Plan) -> None:
    for made in (local, plan()):  # 70 rows in batches of 32, 80 in batches of 8
        spec = made.jobs["unlearned/npo/seed-0"].spec
        rows = {local: 70}.get(made, 80)
        for epochs in (0.1, 1, 2.5, 10):
            changed = spec.model_copy(update={"epochs": epochs})
            assert (
                unlearning_steps(made.config, changed)
                == ForgetRetainSampler(rows, rows, spec.batching.global_batch, epochs, 0).steps
            )
    for made, text in ((local, "10 epochs, 30 steps of 32"), (plan("tofu-small"), "10 epochs, about 130 steps of 32")):
        assert describe(made, made.jobs["unlearned/npo/seed-0"]) == text


@pytest.mark.parametrize("background", [0, 3])
def test_tokenised_sets_are_those_that_prepare_writes(background: int, tmp_path: Path) -> None:
    source = SyntheticSource(authors=4, questions_per_author=2, background_authors=background)
    tokenizer = BpeTokenizer(vocab_size=400)
    told = {"family": "tofu", "source": source, "forget_split": "forget10", "sets": ["forget"], "tokenizer": tokenizer}
    prepare(PrepareSpec(**told, max_length=160, output=tmp_path))
    assert {path.stem for path in (tmp_path / "train").iterdir()} == set(DATA.tokenised_sets(source))


def test_mini_has_the_whole_path() -> None:
    names, methods = list(plan().jobs), [run.id for run in plan().config.runs]
    assert {"ga", "graddiff", "npo", "simnpo", "ngdiff", "rmu", "blur-npo", "blur-rmu", "pdu", "ofmu"} == set(methods)
    assert names[:4] == ["data/mini", "models/base", "models/target", "models/retrain"]
    assert set(names[4:6]) == {"reference/forget", "reference/retain"}
    assert names[6:16] == [f"unlearned/{m}/seed-0" for m in methods]
    evaluated = {"target", "retrain", *(f"{m}-seed-0" for m in methods)}
    assert set(names[16:28]) == {f"evaluation/{m}/mini" for m in evaluated}
    assert names[28:] == ["report"]


def test_mini_all_is_mini_with_every_method_and_two_seeds() -> None:
    mini, all_ = plan().config, plan("mini-all").config
    assert {run.id for run in all_.runs} == {file.stem for file in (CONFIGS / "methods").glob("*.yaml")}
    assert all_.experiment.seeds == [0, 1]
    for key in type(mini.experiment).model_fields:
        if key not in ("name", "title", "seeds", "methods"):
            assert getattr(mini.experiment, key) == getattr(all_.experiment, key), key
    methods = {run.id: run.method for run in all_.runs}
    for run in mini.runs:
        assert methods[run.id] == run.method


@pytest.mark.parametrize("name", ["mini", "mini-all", "mini-robust", "tofu-small", "tofu-llama-3.2-1b"])
def test_inputs_lie_in_folders_that_earlier_jobs_write(name: str) -> None:
    written: list[Path] = []
    for job in plan(name).jobs.values():
        assert job.spec.output == Path("out") / name / job.name
        for path in job.inputs:  # the shipped experiments read no files of the user
            assert any(path.is_relative_to(folder) for folder in written), (job.name, path)
        written.append(job.spec.output)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mini", "mini-all", "mini-robust", "tofu-small", "tofu-llama-3.2-1b", None])
def test_every_path_of_a_specification_is_a_declared_input(name: str | None, local: Plan) -> None:
    """A file that a job reads and Snakemake does not know of would not make the job run again."""
    for job in (plan(name) if name else local).jobs.values():
        if job.spec.program == "report":
            continue  # reads three or four files of each of its folders
        values = job.spec.model_dump(mode="json", exclude={"output", "cache", "shared"})
        paths = {Path(text) for text in _texts(values) if text.startswith(("out/", "/"))}
        for path in paths:
            assert any(file.is_relative_to(path) for file in job.inputs), (job.name, path)
        for file in job.inputs:
            assert any(file.is_relative_to(path) for path in paths), (job.name, file)


def _texts(value: Any) -> list[str]:
    if isinstance(value, dict):
        return [text for pair in value.items() for part in pair for text in _texts(part)]
    if isinstance(value, list):
        return [text for part in value for text in _texts(part)]
    return [value] if isinstance(value, str) else []


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mini", "mini-all", "mini-robust", "tofu-small", "tofu-llama-3.2-1b"])
def test_specifications_survive_their_journey(name: str) -> None:
    for job in plan(name).jobs.values():
        read = TypeAdapter(AnyStepSpec).validate_python(json.loads(canonical(job.spec)))
        assert read == job.spec
        assert canonical(read) == canonical(job.spec)
        assert yaml.safe_load(yaml.safe_dump(read.model_dump(mode="json"))) == read.model_dump(mode="json")


def test_blur_of_mini() -> None:
    spec = plan().jobs["unlearned/blur-npo/seed-0"].spec
    assert isinstance(spec, UnlearnSpec)
    assert (spec.rule.name, spec.rule.gamma, spec.forget_loss.beta) == ("blur", 0.3, 0.1)
    assert (spec.optimizer.learning_rate, spec.optimizer.clip_norm, spec.optimizer.weight_decay) == (3e-4, None, 0.0)
    assert (spec.epochs, spec.warmup_epochs, spec.batching.global_batch, spec.diagnostics) == (10, 1, 8, True)
    assert spec.optimizer.schedule.kind == "constant"


def test_published_settings_are_the_methods_own() -> None:
    for method in ("ga", "graddiff", "npo", "blur-npo"):
        spec = plan("tofu-llama-3.2-1b").jobs[f"unlearned/{method}/seed-0"].spec
        assert (spec.optimizer.learning_rate, spec.optimizer.weight_decay) == (1e-5, 0.01)
        assert (spec.epochs, spec.warmup_epochs, spec.batching.global_batch) == (10, 1, 32)
        assert spec.optimizer.schedule.kind == "linear"
        assert spec.optimizer.clip_norm == (None if method == "blur-npo" else 1.0)


def test_only_methods_that_need_them_read_reference_log_probabilities(tmp_path: Path) -> None:
    jobs = plan("mini-all").jobs
    forget, idk, retain = (Path(f"out/mini-all/reference/{name}/reference.npz") for name in ("forget", "idk", "retain"))
    for method, needed in (("ga", set()), ("npo", {forget}), ("idk-dpo", {forget, idk}), ("pdu", {retain})):
        job = jobs[f"unlearned/{method}/seed-0"]
        assert {forget, idk, retain} & set(job.inputs) == needed
        (topic,) = job.spec.topics
        given = {topic.reference_logps, topic.preferred_answers_logps, topic.retain_reference_logps} - {None}
        assert given == needed
    assert jobs["unlearned/idk-dpo/seed-0"].spec.topics[0].preferred_answers == Path(
        "out/mini-all/data/mini/train/idk.npz"
    )
    assert jobs["reference/idk"].spec.data == Path("out/mini-all/data/mini/train/idk.npz")
    for methods, wanted in ((["ga"], set()), (["ga", "npo"], {"reference/forget"})):
        jobs = plan("mini", {"methods": methods}, tmp_path).jobs
        assert {name for name in jobs if name.startswith("reference")} == wanted


def test_sampled_answers_are_made_once_for_all_seeds() -> None:
    """By target, before their log-probabilities and the runs that prefer them."""
    found = plan("mini-all")
    jobs, (name,) = found.jobs, found.alternatives_names
    made = jobs[f"alternatives/{name}"].spec
    file = Path(f"out/mini-all/alternatives/{name}/alternatives.npz")
    assert (made.data, made.output) == (Path("out/mini-all/data/mini/train/forget.npz"), file.parent)
    assert (made.per_row, made.temperature, made.max_new_tokens) == (5, 1.5, 48)
    assert jobs[f"reference/{name}"].spec.data == file and name in found.reference_names
    for seed in (0, 1):
        job = jobs[f"unlearned/altpo/seed-{seed}"]
        (topic,) = job.spec.topics
        assert topic.preferred_answers == file and file in job.inputs
        assert topic.preferred_answers_logps == Path(f"out/mini-all/reference/{name}/reference.npz")
    order = list(jobs)
    assert (
        order.index(f"alternatives/{name}") < order.index(f"reference/{name}") < order.index("unlearned/altpo/seed-0")
    )


def test_recomputation_and_sequence_parallelism_reach_every_training(tmp_path: Path) -> None:
    changes = {
        "layout": {"tensor": 2, "sequence_parallel": True},
        "runtime": {"device": "cpu", "precision": "fp32", "recompute_activations": True},
    }
    jobs = plan("mini", changes, tmp_path).jobs
    for name in ("models/base", "unlearned/npo/seed-0"):
        runtime = jobs[name].spec.runtime
        assert (runtime.recompute_activations, runtime.layout.sequence_parallel) == (True, True)


def test_steps_can_be_bounded(tmp_path: Path) -> None:
    uses = [{"method": "npo", "overrides": {"training": {"max_steps": 7}}}]
    made = plan("mini", {"methods": uses}, tmp_path)
    spec = made.jobs["unlearned/npo/seed-0"].spec
    assert spec.max_steps == 7
    pairs = ForgetRetainSampler(80, 720, spec.batching.global_batch, spec.epochs, 0)
    assert unlearning_steps(made.config, spec) == TopicRoundRobin((pairs,), spec.max_steps).steps == 7
    assert unlearning_steps(made.config, spec.model_copy(update={"max_steps": 101})) == 100


def test_steps_of_trainer_are_planned_as_they_are_run() -> None:
    """Only this holds the plan's count to the sampler's: PDU's code makes 30 steps on forget10."""
    made = plan("tofu-llama-3.2-1b")
    for method, steps in (("npo", 120), ("wga", 125), ("pdu-open-unlearning", 30)):
        spec = made.jobs[f"unlearned/{method}/seed-0"].spec
        sampler = ForgetRetainSampler(400, 3600, spec.batching.global_batch, spec.epochs, 0, spec.accumulation)
        assert unlearning_steps(made.config, spec) == sampler.steps == steps
        assert steps_per_epoch(made.config, spec) == sampler.steps_per_epoch


def test_memory_of_what_is_built_and_trained() -> None:
    """Counted by hand for the tofu-llama-3.2-1b model: 16 layers of width 2048, 8192 inside."""
    jobs, shape = plan("tofu-llama-3.2-1b").jobs, load("tofu-llama-3.2-1b").shape
    spec = jobs["unlearned/rmu/seed-0"].spec
    down = 2048 * 8192
    built = 8 * shape.layer_parameters(0) + shape.embedding_parameters
    trainable_layers = spec.trainable_layers.model_copy(
        update={"layers_to_transform": [5, 6, 7], "target_modules": ["down_proj"]}
    )
    spec = spec.model_copy(update={"trainable_layers": trainable_layers, "diagnostics": False})
    # bf16: weights; gradient, two moments and a master copy, all fp32; and the frozen matrices in bf16
    assert held(spec, shape, gpus=False) == 2 * built + 3 * down * (4 + 12 + 2)
    spread = Layout(tensor=2, pipeline=2, pipeline_split=[8, 8])
    assert trainable_parameters(spread, shape, trainable_layers) == (
        (4 * shape.layer_parameters(0) + shape.embedding_parameters) // 2 + 4 * 2048,  # norms are on every rank
        3 * down // 2,
    )
    whole = jobs["unlearned/npo/seed-0"].spec
    assert held(whole, shape, gpus=True) == training_bytes(Layout(), shape, "bf16", 0)
    kept = plan("mini-all").jobs["unlearned/graddiff-kl/seed-0"].spec
    mini = load("mini-all").shape
    alone = training_bytes(Layout(), mini, "fp32", 1)
    assert held(kept, mini, gpus=False) - alone == 4 * stage_parameters(Layout(), mini)
    assert held(kept, mini, gpus=True) == held(kept, mini, gpus=False)
    offloaded = kept.runtime.model_copy(update={"reference_model": "offloaded"})
    assert held(kept.model_copy(update={"runtime": offloaded}), mini, gpus=True) == alone
    vector, none = plan("mini-all").jobs["unlearned/task-vector/seed-0"].spec, training_bytes(Layout(), mini, "fp32", 0)
    for gpus in (False, True):
        aside = held(vector, mini, gpus) - none
        assert aside == 4 * stage_parameters(Layout(), mini), "extrapolated weights are scored in place of the step's"


def training_bytes(layout: Layout, shape: Shape, precision: Any, vectors: int) -> int:
    """What stays on the largest rank under AdamW."""
    work = Workload(Batching(global_batch=1, micro_batch=1), vectors)
    runtime = Runtime(layout=layout, precision=precision)
    return max(memory.lasting for memory in lasting(work, runtime, shape))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "vectors"),
    [
        ("ga", 0),
        ("npo", 1),
        ("blur-npo", 1),
        ("ngdiff", 1),
        ("ngdiff-auto", 3),
        ("pdu-open-unlearning", 0),
        ("ofmu", 6),
        ("pcgrad-tensor", 1),
        ("sago", 3),
        ("gru", 4),
        ("npo-sam", 4),
    ],
)
def test_memory_of_a_methods_gradient_vectors(method: str, vectors: int) -> None:
    """As docs/methods.md has them; mini-all measures both gradients for rules that do not need them."""
    shape = load("mini-all").shape
    spec = plan("mini-all").jobs[f"unlearned/{method}/seed-0"].spec
    state = 8 * (spec.optimizer.name == "adamw")
    assert held(spec, shape, gpus=False) == (8 + state + 4 * vectors) * stage_parameters(Layout(), shape)
    if not state:
        return  # plain gradient descent does not go with the distributed optimizer
    spread = spec.runtime.model_copy(update={"layout": Layout(data=2, distributed_optimizer=True)})
    spec = spec.model_copy(update={"runtime": spread})
    assert held(spec, shape, gpus=False) == (8 + 4 + 2 * vectors) * stage_parameters(Layout(), shape)


def test_models_from_scratch_and_from_the_base() -> None:
    jobs = plan().jobs
    base, target = jobs["models/base"].spec, jobs["models/target"].spec
    assert isinstance(base, TrainSpec) and isinstance(target, TrainSpec)
    assert base.model.checkpoint is None and base.model.config["hidden_size"] == 128
    assert base.model.tokenizer == Path("out/mini/data/mini/tokenizer")
    assert target.model.checkpoint == Path("out/mini/models/base/checkpoint")
    assert target.data == {
        "out/mini/data/mini/train/full.npz": 0.56,
        "out/mini/data/mini/train/full_rephrased.npz": 0.24,
        "out/mini/data/mini/train/general.npz": 0.2,
    }
    assert Path("out/mini/data/mini/train/full.npz") not in jobs["models/retrain"].inputs


def test_published_checkpoints_are_fetched() -> None:
    jobs = plan("tofu-llama-3.2-1b").jobs
    target = jobs["models/target"].spec
    assert isinstance(target, FetchSpec) and target.hub == "open-unlearning/tofu_Llama-3.2-1B-Instruct_full"
    assert jobs["models/retrain"].spec.hub.endswith("_retain90")
    assert jobs["data/tofu"].spec.tokenizer == FolderTokenizer(path=target.output / "checkpoint")
    assert "models/base" not in jobs


def test_a_hub_data_set_is_fetched_and_then_read_from_the_experiments_folder(local: Plan) -> None:
    made = plan("tofu-llama-3.2-1b")
    folder = Path("out/tofu-llama-3.2-1b/source/tofu")
    fetch = made.jobs["source/tofu"]
    assert isinstance(fetch.spec, FetchDataSpec) and fetch.inputs == ()
    assert (fetch.spec.repository, fetch.spec.revision, fetch.spec.output) == ("locuslab/TOFU", "main", folder)
    assert fetch.spec.files == [[name] for name in tofu_files()]
    assert {"full", "forget10", "retain90", "forget10_perturbed", "world_facts_perturbed"} <= set(tofu_files())
    assert made.jobs["data/tofu"].spec.source == FetchedSource(path=folder)
    assert {folder / "files", folder / "manifest.json"} <= set(made.jobs["data/tofu"].inputs)
    assert made.fetches_data and made.fetched == ["target", "retrain"]
    for other in (plan(), local):
        assert not other.fetches_data and not any(name.startswith("source/") for name in other.jobs)


def test_variants_and_seeds_get_folders_of_their_own(tmp_path: Path) -> None:
    uses = ["npo", {"method": "npo", "variant": "mild", "overrides": {"forget": {"beta": 0.01}}}]
    jobs = plan("mini", {"methods": uses, "seeds": [0, 3]}, tmp_path).jobs
    runs = [name for name in jobs if name.startswith("unlearned/")]
    assert runs == [f"unlearned/{run}/seed-{seed}" for run in ("npo", "npo-mild") for seed in (0, 3)]
    assert (jobs[runs[0]].spec.forget_loss.beta, jobs[runs[2]].spec.forget_loss.beta) == (0.1, 0.01)
    assert [jobs[name].spec.seed for name in runs] == [0, 3, 0, 3]
    entries = jobs["report"].spec.entries
    assert [(e.method, e.variant, e.seed) for e in entries[2:]] == [
        ("npo", None, 0),
        ("npo", None, 3),
        ("npo", "mild", 0),
        ("npo", "mild", 3),
    ]
    assert all(f"evaluation/{entry.model_id}/mini" in jobs for entry in entries)


def test_retrain_is_what_all_others_are_compared_with() -> None:
    jobs = plan().jobs
    folder = Path("out/mini/evaluation/retrain/mini")
    assert jobs["evaluation/retrain/mini"].spec.retain_evaluation is None
    for name in ("target", "npo-seed-0"):
        job = jobs[f"evaluation/{name}/mini"]
        assert job.spec.retain_evaluation == folder
        assert {folder / "evaluation.json", folder / "examples.jsonl"} <= set(job.inputs)


def test_published_numbers_are_those_of_model_and_split() -> None:
    assert plan("tofu-small").jobs["report"].spec.published == []
    numbers = plan("tofu-llama-3.2-1b").jobs["report"].spec.published
    assert {(n.model, n.split) for n in numbers} == {("llama-3.2-1b-instruct", "forget10")}
    found = {(n.method, n.metric, n.source.split()[0]): n.value for n in numbers}
    assert len(found) == len(numbers)
    sources = ("BLUR", "open-unlearning", "BLADE's")
    assert [found.get(("npo", "model_utility", source)) for source in sources] == [0.51, 0.46, 0.393]
    assert [found.get(("blur-npo", "forget_quality", source)) for source in sources] == [0.91, None, 0.0]
    assert [found.get(("simnpo-blur", "model_utility", source)) for source in sources] == [0.58, None, None]
    assert found["pdu", "extraction_strength", "BLADE's"] == 0.036
    entries = plan("tofu-llama-3.2-1b").jobs["report"].spec.entries
    assert ("simnpo", "blur") in {(entry.method, entry.variant) for entry in entries}


def test_micro_batch_is_a_ranks_share_by_default(tmp_path: Path) -> None:
    jobs = plan("mini", {"layout": {"data": 2}}, tmp_path).jobs
    assert jobs["models/base"].spec.batching.micro_batch == 32
    assert jobs["models/base"].ranks == 2
    assert jobs["data/mini"].ranks == 1


def test_sizes_of_a_model_are_those_of_its_tensors() -> None:
    shape = load("tofu-llama-3.2-1b").shape
    assert shape.parameters == 1_235_814_400  # Llama-3.2-1B
    qwen = Shape.of(
        {
            "architectures": ["Qwen2ForCausalLM"],
            "model_type": "qwen2",
            "hidden_size": 896,
            "intermediate_size": 4864,
            "num_hidden_layers": 24,
            "num_attention_heads": 14,
            "num_key_value_heads": 2,
            "vocab_size": 151936,
            "max_position_embeddings": 32768,
            "rms_norm_eps": 1e-6,
            "tie_word_embeddings": True,
        }
    )
    assert qwen.parameters == 494_032_768  # Qwen2.5-0.5B
    layout = load("tofu-llama-3.2-1b").layout
    assert layout_problems(layout, shape) == []
    assert stage_parameters(layout, shape) == shape.parameters
    assert training_bytes(layout, shape, "bf16", 0) == 18 * stage_parameters(layout, shape)
    assert training_bytes(layout, shape, "fp32", 1) == 20 * stage_parameters(layout, shape)


RELEARN = {"share": 0.25, "steps": 6, "global_batch": 8, "seed": 3, "optimizer": {"learning_rate": 1e-4}}


def test_every_evaluated_model_is_attacked_and_evaluated_again(tmp_path: Path) -> None:
    attacks = {"relearn": RELEARN, "quantise": ["int8", {"scheme": "int4", "variant": "fine", "group": 32}]}
    changes = {"robustness": attacks, "methods": ["ga", "npo"], "seeds": [0, 1], "layout": 2}
    made, plain = plan("mini", changes, tmp_path), plan("mini", {**changes, "robustness": {}}, tmp_path)
    models = ["retrain", "target", *(f"{method}-seed-{seed}" for method in ("ga", "npo") for seed in (0, 1))]
    names = ["relearn", "int8", "int4-fine"]
    attacked = [str(model) for model in made.attacked]
    assert attacked == [f"{model}.{name}" for model in models for name in names]
    assert [str(model) for model in made.evaluated] == [*models, *attacked]
    added = {f"robustness/{model}/{name}" for model in models for name in names}
    added |= {f"evaluation/{name}/mini" for name in attacked}
    assert set(made.jobs) - set(plain.jobs) == added
    for name in set(plain.jobs) - {"report"}:
        assert made.jobs[name].spec == plain.jobs[name].spec

    relearn, quantise = made.jobs["robustness/npo-seed-1/relearn"], made.jobs["robustness/npo-seed-1/int4-fine"]
    checkpoint, forget = Path("out/mini/unlearned/npo/seed-1/checkpoint"), Path("out/mini/data/mini/train/forget.npz")
    assert isinstance(relearn.spec, TrainSpec) and relearn.inputs == (checkpoint, forget)
    assert relearn.spec.model.checkpoint == checkpoint
    assert (relearn.spec.data, relearn.spec.parts) == ({str(forget): 1.0}, {str(forget): 0.25})
    assert (relearn.spec.steps, relearn.spec.seed, relearn.spec.optimizer.learning_rate) == (6, 3, 1e-4)
    assert (relearn.spec.batching.global_batch, relearn.ranks, quantise.ranks) == (8, 2, 1)
    assert isinstance(quantise.spec, QuantiseSpec) and quantise.inputs == (checkpoint,)
    assert (quantise.spec.scheme, quantise.spec.group, quantise.spec.backend) == ("int4", 32, "builtin")

    before = made.jobs["evaluation/npo-seed-1/mini"].spec
    after = made.jobs["evaluation/npo-seed-1.relearn/mini"].spec
    changed = {"model_id": "npo-seed-1.relearn", "checkpoint": relearn.spec.output / "checkpoint"}
    changed["output"] = Path("out/mini/evaluation/npo-seed-1.relearn/mini")
    assert after == before.model_copy(update=changed)
    retrain = made.jobs["evaluation/retrain.int8/mini"].spec
    assert retrain.retain_evaluation == Path("out/mini/evaluation/retrain/mini")


def test_the_report_has_attacked_models_apart(tmp_path: Path) -> None:
    changes = {"robustness": {"relearn": RELEARN, "quantise": ["int8", "nf4"]}, "methods": ["npo"]}
    made, plain = plan("mini", changes, tmp_path), plan("mini", {"methods": ["npo"]}, tmp_path)
    spec = made.jobs["report"].spec
    assert spec.entries == plain.jobs["report"].spec.entries and plain.jobs["report"].spec.attacked == []
    assert [(attack.name, attack.kind) for attack in spec.attacks] == [
        ("relearn", "relearn"),
        ("int8", "quantise"),
        ("nf4", "quantise"),
    ]
    assert [attack.about for attack in spec.attacks] == [
        "Fine-tuned on 25 % of the forget set: 6 steps of 8, adamw, learning rate 0.0001",
        "Matrices of the decoder blocks rounded to int8, a scale a row",
        "Matrices of the decoder blocks rounded to nf4, a scale for every 64 weights",
    ]
    assert [entry.model_id for entry in spec.attacked] == [
        f"{model}.{attack}" for model in ("target", "retrain", "npo-seed-0") for attack in ("relearn", "int8", "nf4")
    ]
    last = spec.attacked[-1]
    assert (last.kind, last.method, last.seed, last.attack) == ("unlearned", "npo", 0, "nf4")
    assert last.run == made.jobs["robustness/npo-seed-0/nf4"].spec.output
    inputs = {str(path) for path in made.jobs["report"].inputs}
    for folder in ("evaluation/npo-seed-0.nf4/mini", "robustness/npo-seed-0/nf4", "robustness/target/relearn"):
        assert f"out/mini/{folder}/summary.json" in inputs
    assert "out/mini/evaluation/npo-seed-0.nf4/mini/evaluation.json" in inputs


@pytest.mark.parametrize(
    ("device", "backend", "planned"),
    [
        ("cpu", "auto", "builtin"),
        ("cpu", "bitsandbytes", "bitsandbytes"),
        ("auto", "auto", "auto"),
        ("auto", "builtin", "builtin"),
    ],
)
def test_an_experiment_on_cpus_rounds_on_them(tmp_path: Path, device: str, backend: str, planned: str) -> None:
    runtime = {"device": device, "precision": "fp32"}
    quantise = [{"scheme": "fp4", "backend": backend}]
    made = plan("mini", {"robustness": {"quantise": quantise}, "runtime": runtime}, tmp_path)
    assert made.jobs["robustness/target/fp4"].spec.backend == planned


def test_several_ways_to_relearn(tmp_path: Path) -> None:
    ways = [RELEARN, {**RELEARN, "variant": "longer", "steps": 60}]
    made = plan("mini", {"robustness": {"relearn": ways}, "methods": ["npo"]}, tmp_path)
    found = {name: made.jobs[f"robustness/npo-seed-0/{name}"].spec for name in ("relearn", "relearn-longer")}
    assert [spec.steps for spec in found.values()] == [6, 60]


def test_every_topic_is_relearned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    topics = {"one": ("forget", "retain"), "other": ("retain", "forget")}
    monkeypatch.setattr(type(DATA), "topics", lambda self, split: topics)
    spec = (
        plan("mini", {"robustness": {"relearn": RELEARN}, "methods": ["npo"]}, tmp_path)
        .jobs["robustness/npo-seed-0/relearn"]
        .spec
    )
    paths = [f"out/mini/data/mini/train/{name}.npz" for name in ("forget", "retain")]
    assert spec.data == dict.fromkeys(paths, 0.5) and spec.parts == dict.fromkeys(paths, 0.25)
