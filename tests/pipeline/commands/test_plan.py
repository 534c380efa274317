"""``unlearn plan``: costs of an experiment on GPUs, and a layout that fits them."""

from __future__ import annotations

from pathlib import Path

import pytest

from megatron_ext.config import Layout
from megatron_ext.specs import UnlearnSpec
from pipeline.__main__ import main
from pipeline.config import auto_layout
from pipeline.config.auto_layout import NODE, fits
from pipeline.config.load import load
from pipeline.config.located_yaml import ConfigError
from pipeline.workflow import costs
from pipeline.workflow.plan import Plan

GIB = 2**30


@pytest.fixture(scope="module")
def large() -> Plan:
    return Plan(load("tofu-llama-3.1-70b"), Path("out"))


def test_what_fits_is_said_and_what_does_not_is_marked(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "tofu-llama-3.1-70b", "--price", "2"]) == 0
    fitting = capsys.readouterr().out
    assert main(["plan", "tofu-llama-3.1-70b", "--gpu-memory", "40GiB"]) == 1
    small = capsys.readouterr().out
    row = next(line for line in small.splitlines() if line.startswith("unlearned/blur-npo/seed-0"))
    assert " 8.2  " in row and "58.2 *" in row and "none of 32 GPUs" in small
    assert "58.2 *" not in fitting and "at 2 an hour" in fitting and "assumed    h100-80" in fitting


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--gpu-memory", "80"], "--gpu-memory: '80'"),
        (["--gpu-type", "h100"], "--gpu-type: unknown type 'h100'"),
        (["--gpus", "0"], "--gpus: 0"),
        (["--price", "-1"], "--price: -1; 0 or more"),
        (["--price", "nan"], "--price: nan; 0 or more"),
    ],
)
def test_wrong_options(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "mini", *words]) == 2
    assert message in capsys.readouterr().err


def test_a_table_of_ones_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Twice the speed is half the time of operations; what was measured is no assumption; a wrong key is named."""
    own = tmp_path / "gpus.yaml"
    values = "memory_gib: 80, fp32_tflops: 67, reached: 0.5, link_gb_s: 1, network_gb_s: 1, disk_gb_s: 1"
    own.write_text(f"mine: {{{values}, bf16_tflops: 100, measured: [bf16_tflops, reached]}}\n")
    assert main(["plan", "mini", "--gpus-file", str(own), "--gpu-type", "mine"]) == 0
    out = capsys.readouterr().out
    assert "assumed    mine: memory_gib 80, fp32_tflops 67, link_gb_s 1" in out and "reached" not in out
    own.write_text(f"mine: {{{values}, tflops: 100}}\n")
    assert main(["plan", "mini", "--gpus-file", str(own), "--gpu-type", "mine"]) == 2
    assert "tflops" in capsys.readouterr().err


def test_a_recommended_layout_fits_and_none_with_fewer_splits_does(large: Plan) -> None:
    size = 80 * GIB
    found = costs.recommended(large, 64, size)
    assert found is not None and fits(found[1], size)
    layout = found[0]
    assert layout.ranks == 64 and layout.tensor <= NODE
    experiment, runs = large.config.experiment, [run.method for run in large.config.runs]
    for other in auto_layout.possible(experiment, runs, large.config.shape, 64):
        if (other.pipeline, other.tensor) < (layout.pipeline, layout.tensor):
            assert not fits(auto_layout.peak(experiment, runs, large.config.shape, other), size)
    assert costs.recommended(large, 4, size) is None


def test_bytes_that_ranks_exchange(large: Plan) -> None:
    """Counted by hand: BLUR on Llama-3.1-70B, tensor 8 x pipeline 4 x data 2."""
    spec = large.jobs["unlearned/blur-npo/seed-0"].spec
    assert isinstance(spec, UnlearnSpec)
    layout = Layout(tensor=8, pipeline=4, data=2, distributed_optimizer=True, sequence_parallel=True)
    moved = spec.model_copy(update={"runtime": spec.runtime.model_copy(update={"layout": layout})})
    states = 2 * 8192 * 16 * 512 * 2  # bf16; half of the 32 rows; both sets
    last = 20 * (855_638_016 + 0) // 8 + 128_256 // 8 * 8192 + 41 * 8192
    steps = 130  # ten passes over 400 rows
    each = states * (20 * 6 + 2) + last * (4 * 2 + 2)
    assert costs.moved_bytes(large, moved) == pytest.approx(steps * each, rel=1e-3)


LEAN = "runtime.memory={gradients: bf16, optimizer: offload}"


@pytest.mark.parametrize(
    ("experiment", "ranks", "settings"),
    [
        ("tofu-llama-3.1-8b", 1, [LEAN]),
        ("tofu-llama-3.1-8b", 2, [LEAN]),
        ("tofu-llama-3.1-8b", 2, ["runtime.memory={gradients: bf16, main_weights: false}"]),
        ("tofu-llama-3.1-8b", 4, []),
        ("tofu-llama-3.1-8b", 8, []),
        ("tofu-llama-3.2-3b", 2, []),
        ("tofu-llama-3.2-3b", 8, []),
        *(("tofu-llama-3.1-70b", ranks, []) for ranks in (32, 64, 128)),
        ("tofu-llama-3.1-405b", 256, []),
    ],
)
def test_shipped_layouts_fit_gpus_of_80_gb(experiment: str, ranks: int, settings: list[str]) -> None:
    made = Plan(load(experiment, settings=[f"layout={ranks}", *settings]), Path("out"))
    peaks = {name: costs.step_memory(made, spec).total for name, spec in costs.model_steps(made)}
    assert len(peaks) > 12
    assert all(fits(peak, 80 * GIB) for peak in peaks.values()), peaks


def test_what_saves_memory_by_hand() -> None:
    """BLUR-NPO on Llama-3.1-8B: weights, gradient and one vector of 2 bytes on the GPU, 16 in the host's memory."""
    made = Plan(load("tofu-llama-3.1-8b", settings=["layout=1", LEAN]), Path("out"))
    found = costs.step_memory(made, made.jobs["unlearned/blur-npo/seed-0"].spec)
    parameters = 8_030_261_248
    kinds = (found.weights, found.gradients, found.vectors, found.optimizer, found.host)
    assert kinds == pytest.approx((2 * parameters, 2 * parameters, 2 * parameters, 0, 16 * parameters), rel=1e-5)
    best = costs.recommended(made, 1, 80 * GIB)
    assert best is not None and best[0] == Layout(distributed_optimizer=True)


def test_an_offloaded_optimizer_needs_its_layout() -> None:
    with pytest.raises(ConfigError, match=r"runtime\.memory\.optimizer: 'offload' needs layout"):
        load("tofu-llama-3.1-8b", settings=["layout=4", LEAN])


def test_an_automatic_layout_is_the_recommended_one() -> None:
    """It is in every specification, goes with the experiment's own micro-batches, and is refused where nothing fits."""
    made = Plan(load("tofu-llama-3.1-70b", settings=["layout={auto: 32}"]), Path("out"))
    best = costs.recommended(made, 32, 80 * GIB)
    assert best is not None and made.config.layout == best[0] == load("tofu-llama-3.1-70b").layout
    assert {spec.runtime.layout for _, spec in costs.model_steps(made)} == {best[0]}
    lean = load("tofu-llama-3.1-8b", settings=["layout={auto: 1}", LEAN])
    assert lean.layout == Layout(distributed_optimizer=True)
    rows = load("tofu-llama-3.1-70b", settings=["layout={auto: 128}"]).layout
    assert 32 % (rows.data * 4) == 0, "micro-batches of four rows"
    with pytest.raises(ConfigError, match=r"layout\.auto: 2: at no layout"):
        load("tofu-llama-3.1-8b", settings=["layout={auto: 2}"])
    # Data-parallel ranks of whole micro-batches, where the plan is of another layout too.
    found = costs.recommended(made, 128, 80 * GIB)
    assert found is not None and found[0] == rows


def test_the_largest_step_at_an_automatic_layout_is_as_the_plan_counts_it() -> None:
    """A micro-batch that is not given is the whole share of a data-parallel rank, at each layout its own."""
    at = {}
    for ranks in (1, 2):
        made = Plan(
            load("mini-robust", settings=[f"layout={{data: {ranks}, distributed_optimizer: true}}"]), Path("out")
        )
        config, runs = made.config, [run.method for run in made.config.runs]
        peaks = [costs.step_memory(made, spec).total for _, spec in costs.model_steps(made)]
        at[ranks] = max(peaks)
        assert auto_layout.peak(config.experiment, runs, config.shape, config.layout) == at[ranks]
        one = costs.recommended(made, 1, 80 * GIB)
        assert one is not None and one[1] >= at[1]


RELEARN = "robustness={relearn: {share: 0.2, steps: 2, global_batch: 5, optimizer: {name: adamw, learning_rate: 1e-3}}}"


def test_an_automatic_layout_goes_with_the_attacks_too() -> None:
    """Five rows divide over one data-parallel rank only, and ten thousand rows of a micro-batch fit no GPU."""
    settings = ["runtime.device=cuda", "layout={auto: 4}", "unlearning.global_batch=8"]
    assert load("mini", settings=settings).layout.data == 4
    assert load("mini", settings=[*settings, RELEARN]).layout == Layout(tensor=4, sequence_parallel=True)
    large = RELEARN.replace("global_batch: 5", "global_batch: 100000")
    with pytest.raises(ConfigError, match=r"layout\.auto: 1: at no layout of so many GPUs every step fits"):
        load("mini", settings=["runtime.device=cuda", "layout={auto: 1}", large])


def test_where_no_layout_of_so_many_ranks_is_possible_memory_is_not_blamed() -> None:
    with pytest.raises(ConfigError) as error:
        load("mini", settings=["runtime.device=cuda", "layout={auto: 3}"])
    (problem,) = error.value.problems
    assert problem.startswith("--set layout.auto: 3: no layout of so many GPUs goes with the model's heads")
    assert problem.endswith("; allowed: 1, 2")
