"""What jobs ask Slurm for: numbers computed by hand, and the executor's own command line."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from snakemake_executor_plugin_slurm.submit_string import get_submit_command
from snakemake_executor_plugin_slurm.utils import set_gres_string
from snakemake_executor_plugin_slurm.validation import validate_slurm_extra

from megatron_ext.schema.safe_yaml import Loader
from megatron_ext.specs import UnlearnSpec
from pipeline.config.load import CONFIGS, load
from pipeline.config.site import Site
from pipeline.config.sizing import Nodes
from pipeline.workflow.plan import Plan
from pipeline.workflow.resources import KEYS, Needs, needs, operations, problems, requested, states_written

GIB = 2**30
# mini: 2048 x 128 embeddings, two layers of 49152 + 16384 + 90112 + 45056 + 256, a last norm
PARAMETERS = 262_144 + 2 * 200_960 + 128
CPUS = Site(gpus_per_node=0)


def plan(name: str = "mini", site: Site = CPUS, folder: Path | None = None, **changes: Any) -> Plan:
    if folder is None:
        return Plan(load(name, None, site), Path("out"))
    content = yaml.load((CONFIGS / "experiments" / f"{name}.yaml").read_text(), Loader)
    content |= changes
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return Plan(load(path, None, site), folder)


def of(made: Plan, name: str, site: Site = CPUS) -> Needs:
    return needs(made, site, made.jobs[name])


def test_training_on_a_cpu() -> None:
    made = plan()
    assert made.config.shape.parameters == PARAMETERS == 664_192
    found = of(made, "models/target")
    operations = 6 * PARAMETERS * 700 * 32 * 128
    assert found.seconds == pytest.approx(300 + operations / 25e9 + 2 * 4 * PARAMETERS / 200e6)
    assert found.seconds == pytest.approx(757.1, abs=0.1)
    block = 4 * 128 + 2 * 128 + 2 * 128 + 4 * 352  # two inputs and their norms, attention, feed-forward
    activations = 4 * 32 * 128 * 2 * block + 4 * 2048 * 128  # and the embedding's gradient
    logits = 32 * 128 * 2048 * (4 + 2 * 4)
    assert found.memory == 16 * PARAMETERS + activations + logits + 2 * GIB + GIB // 2
    assert (found.nodes, found.cores, found.warn) == (Nodes(1, 1, 0), 1, 120)
    # 757 s + 120 s are 14.6 minutes; 2 x 757 s + 120 s 27.2; 3 x 757 s + 120 s 39.9
    assert [found.minutes(CPUS, attempt) for attempt in (1, 2, 3)] == [15, 30, 40]
    assert [found.memory_mb(CPUS, attempt) for attempt in (1, 2)] == [2744, 5487]


def test_unlearning_counts_both_sets_and_what_a_method_adds() -> None:
    made = plan("mini-all")

    looked = 11 * 2 * 40 * 128 * 2 * PARAMETERS / 25e9  # before the first and after each of ten epochs, 40 rows a set

    def seconds(method: str) -> float:
        validation = 0 if "rmu" in method else looked
        return of(made, f"unlearned/{method}/seed-0").seconds - 300 - 2 * 4 * PARAMETERS / 200e6 - validation

    batch = 100 * 8 * 128 * PARAMETERS / 25e9  # 80 rows in batches of 8, ten times
    assert seconds("ga") == pytest.approx(6 * batch)
    assert seconds("npo") == pytest.approx(2 * 6 * batch)
    assert seconds("idk-dpo") == pytest.approx(3 * 6 * batch), "the other answers are a batch of their own"
    assert seconds("ofmu") == pytest.approx(4 * 2 * 6 * batch)
    assert seconds("graddiff-kl") == pytest.approx(2 * (6 + 2) * batch), "the model before unlearning is run as well"
    # RMU builds one of the two layers; micro-batches and pipeline leave nothing idle here.
    built = 262_144 + 200_960
    assert seconds("rmu") == pytest.approx(2 * (6 + 2) * batch * built / PARAMETERS)


def test_a_validation_sample_is_no_larger_than_the_sets() -> None:
    """80 rows are forgotten, and 800 there are in all."""

    def rows_read(rows: int) -> float:
        made = Plan(load("mini", settings=[f"unlearning.validation.rows={rows}"]), Path("out"))
        spec = made.jobs["unlearned/npo/seed-0"].spec
        assert isinstance(spec, UnlearnSpec)
        return operations(made, spec) / (2 * PARAMETERS * 128)

    assert rows_read(1000000) - rows_read(40) == pytest.approx(11 * (80 + 800 - 2 * 40))


def test_weights_that_may_be_the_best_are_written_at_each_measurement(tmp_path: Path) -> None:
    best = {"training": {"validation": {"select": "best-on-validation"}}}
    made = plan(folder=tmp_path, methods=["npo", {"method": "npo", "variant": "best", "overrides": best}])
    more = of(made, "unlearned/npo-best/seed-0").seconds - of(made, "unlearned/npo/seed-0").seconds
    assert more == pytest.approx((11 + 1) * 4 * PARAMETERS / 200e6)


def test_a_state_is_written_after_each_step_at_most(tmp_path: Path) -> None:
    made = Plan(load("mini", settings=["unlearning.checkpoint_minutes=1e-320"]), tmp_path)
    spec = made.jobs["unlearned/npo/seed-0"].spec
    assert isinstance(spec, UnlearnSpec) and states_written(spec, 100, 60.0) == 100


def test_a_dual_variable_that_moves_once_an_epoch_reads_the_whole_retain_set(tmp_path: Path) -> None:
    bound = {"epsilon": 0.1, "tolerance": None, "dual_update": "epoch"}
    uses = ["pdu", {"method": "pdu", "variant": "epoch", "overrides": {"rule": bound}}]
    made = plan(folder=tmp_path, methods=uses)
    more = of(made, "unlearned/pdu-epoch/seed-0").seconds - of(made, "unlearned/pdu/seed-0").seconds
    assert more == pytest.approx(10 * 800 * 128 * 2 * PARAMETERS / 25e9)


def test_evaluation_on_a_cpu() -> None:
    found = of(plan(), "evaluation/npo-seed-0/mini")
    sequences, answers = 7 * (80 + 400) + 6 * 217 + 80, 80 + 400 + 217  # the holdout set has one answer a row
    operations = 2 * PARAMETERS * (sequences * 128 + answers * (128 + 64))
    generation = 9 * 64 * 4 * PARAMETERS / 5e9  # 85 of 697 answers at a time
    assert found.seconds == pytest.approx(300 + operations / 25e9 + 4 * PARAMETERS / 200e6 + generation)
    cache = 2 * 2 * 128
    activations = 4 * 16384 * (8 * 128 + 3 * 352 + cache)
    logits = 16384 * 2048 * (4 + 2 * 4)
    assert found.memory == 4 * PARAMETERS + activations + logits + 2 * GIB + GIB // 2
    assert (found.warn, found.minutes(CPUS)) == (0, 10), "it writes no state that a warning could save"


def test_a_large_model_on_gpus() -> None:
    """Llama 70B on 32 GPUs: four nodes of eight."""
    site = Site()
    made = plan("tofu-llama-3.1-70b", site)
    found = of(made, "models/target", site)
    assert found.nodes == Nodes(4, 8, 8)
    assert made.config.shape.parameters == 70_553_706_496
    # bf16 weights and fp32 gradients of the last of two stages; half of its fp32 moments and master copy
    last = 40 * (855_638_016 // 8 + 2 * 8192) + 8192 + 128_256 // 8 * 8192
    state = (2 + 4 + 12 / 2) * last
    assert found.memory == pytest.approx(8 * (state + 8 * GIB) + GIB // 2, rel=1e-4)
    idle = (4 + 1) / 4  # four micro-batches of four through two stages
    work = idle * 8 * 70_553_706_496 * 625 * 32 * 512 / (32 * 50e12)  # 8: activations are computed again
    disk = (2 * 2 * 70_553_706_496 + 6 * state) / 200e6  # read, written, and a state every 100 steps
    assert found.seconds == pytest.approx(300 + work + disk, rel=1e-4)
    assert found.warn == 60 + 265, "a state of 53 GB a rank takes longer to write than the site's 120 s"
    asked = requested(found, site)
    assert asked["runtime"] == 140 and asked["mem_mb"] == pytest.approx(8 * (state + 8 * GIB) / 2**20, rel=2e-3)
    evaluation = of(made, "evaluation/target/tofu", site)
    assert evaluation.nodes == found.nodes and evaluation.seconds < found.seconds


def test_rounding_holds_a_matrix_and_asks_for_a_gpu_only_where_it_is_told_to_use_one(tmp_path: Path) -> None:
    found = of(plan("mini-robust"), "robustness/npo-seed-0/int8")
    matrices = 2 * (49_152 + 16_384 + 90_112 + 45_056)
    assert found.seconds == pytest.approx(300 + 3 * 4 * PARAMETERS / 200e6 + matrices / 4e6)
    assert found.memory == 8 * 4 * 128 * 352 + 2 * GIB + GIB // 2
    assert (found.nodes, found.cores, found.warn) == (Nodes(1, 1, 0), 1, 0)
    runtime = {"device": "auto", "precision": "bf16"}
    quantise = [{"scheme": "nf4", "backend": backend} | {"variant": backend} for backend in ("auto", "bitsandbytes")]
    for site, gpus in ((Site(), 1), (CPUS, 0)):
        attacks = {"robustness": {"quantise": quantise}, "methods": ["npo"]}
        made = plan("mini", site, tmp_path, runtime=runtime, **attacks)
        assert of(made, "robustness/npo-seed-0/nf4-auto", site).nodes.gpus == 0
        assert of(made, "robustness/npo-seed-0/nf4-bitsandbytes", site).nodes == Nodes(1, 1, gpus)


def test_steps_without_a_model_ask_for_one_core() -> None:
    for site in (CPUS, Site()):
        for name, memory in (("data/mini", 4.5), ("report", 2.5)):
            found = of(plan(site=site), name, site)
            assert (found.nodes, found.cores, found.memory) == (Nodes(1, 1, 0), 1, memory * GIB)
            assert found.minutes(site) == 10


@pytest.mark.parametrize("name", sorted(file.stem for file in (CONFIGS / "experiments").glob("*.yaml")))
def test_every_job_of_every_experiment_asks_for_something(name: str) -> None:
    site = Site()
    made = plan(name, site)
    for job in made.jobs.values():
        found = requested(needs(made, site, job), site)
        assert tuple(found) == KEYS
        assert 5 <= found["runtime"] <= 48 * 60 and found["runtime"] % 5 == 0
        assert 2048 < found["mem_mb"] < 1_000_000


def test_time_and_memory_of_a_site() -> None:
    found = Needs(Nodes(1, 1, 0), 1, 10 * GIB, 3600.0, 60)
    assert [found.minutes(Site(time_factor=factor)) for factor in (0.5, 1, 3)] == [35, 65, 185]
    assert [found.memory_mb(Site(memory_per_node_mb=16_000), attempt) for attempt in (1, 2, 3)] == [
        10_240,
        16_000,
        16_000,
    ]


def test_memory_that_no_node_has_is_a_mistake() -> None:
    made = plan()
    assert problems(made, Site(gpus_per_node=0, memory_per_node_mb=5000), "site.yaml") == []
    found = problems(made, Site(gpus_per_node=0, memory_per_node_mb=2700), "site.yaml")
    assert found[0] == "site.yaml: memory_per_node_mb: 2700; data/mini needs 4608 on each node"
    assert re.fullmatch(r"site\.yaml: memory_per_node_mb: 2700; models/base needs \d+ on each node", found[1])
    assert len(found) == len({problem.split(";")[1].split("/")[0] for problem in found}), "the worst of each kind"


class Resources(dict[str, Any]):
    """As the executor sees a job's: what is None is not there."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None


class Job:
    threads = 1

    def __init__(self, wanted: Needs, site: Site, attempt: int = 1):
        self.resources = Resources({k: v for k, v in requested(wanted, site, attempt).items() if v is not None})


def sbatch(wanted: Needs, site: Site) -> list[str]:
    """The options of the executor's command line that are about resources."""
    job = Job(wanted, site)
    validate_slurm_extra(job)
    parameters = dict(run_uuid="x", slurm_logfile="l", comment_str="c", account="", partition="", workdir=None)
    line = get_submit_command(job, parameters) + set_gres_string(job)
    return line.split("--comment c")[1].split()


@pytest.mark.parametrize(
    ("nodes", "site", "options"),
    [
        (Nodes(1, 1, 0), {}, "--nodes=1 --ntasks=1 --cpus-per-task=2"),
        (Nodes(1, 1, 1), {}, "--nodes=1 --cpus-per-task=2 --gres=gpu:1"),
        (Nodes(1, 2, 2), {}, "--nodes=1 --ntasks-per-node=2 --cpus-per-task=2 --gres=gpu:2"),
        (Nodes(4, 8, 8), {"gpu_type": "h200"}, "--nodes=4 --ntasks-per-node=8 --cpus-per-task=2 --gres=gpu:h200:8"),
        (Nodes(2, 2, 0), {}, "--nodes=2 --ntasks-per-node=2 --cpus-per-task=2"),
        (Nodes(4, 1, 1), {}, "--nodes=4 --ntasks=4 --cpus-per-task=2 --ntasks-per-node=1 --gres=gpu:1"),
        (Nodes(2, 1, 0), {}, "--nodes=2 --ntasks=2 --cpus-per-task=2 --ntasks-per-node=1"),
    ],
)
def test_the_executors_command_line(nodes: Nodes, site: dict[str, Any], options: str) -> None:
    """Never ``--ntasks-per-gpu``, with which every task sees the same GPU or the job never starts."""
    assert sbatch(Needs(nodes, 2, GIB, 60.0, 0), Site(**site)) == ["-t", "5", "--mem", "1024", *options.split()]


def test_what_the_site_adds_to_the_command_line() -> None:
    site = Site(qos="high", constraint="a100|h100", extra="--exclude=n1 --mail-user=me@example.org")
    found = sbatch(Needs(Nodes(1, 1, 1), 1, GIB, 60.0, 90), site)
    assert found[:7] == ["-t", "5", "-C", "'a100|h100'", "--qos=high", "--mem", "1024"]
    assert found[-4:] == ["--exclude=n1", "--mail-user=me@example.org", "--signal=URG@90", "--gres=gpu:1"]
    both = requested(Needs(Nodes(1, 1, 1), 1, GIB, 60.0, 0), Site(partition="gpu", account="mine"))
    assert (both["slurm_partition"], both["slurm_account"], both["slurm_extra"]) == ("gpu", "mine", None)
