"""The source files of a step: all that it runs, and nothing that it does not."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

from pipeline.config.load import load
from pipeline.steps import programs
from pipeline.workflow.plan import Plan

JOBS = Plan(load("mini"), Path("out")).jobs


def files(job: str) -> set[str]:
    return {str(path.relative_to(programs.ROOT)) for path in programs.source_files(JOBS[job].spec)}


def test_programs_exist_and_have_a_main() -> None:
    for module in programs.PROGRAMS.values():
        assert callable(importlib.import_module(module).main)


def test_a_method_runs_its_own_loss_and_rule_only() -> None:
    blur, ga = files("unlearned/blur-npo/seed-0"), files("unlearned/ga/seed-0")
    assert {"megatron_ext/losses/npo.py", "megatron_ext/losses/nll.py", "megatron_ext/updates/blur.py"} <= blur
    assert "megatron_ext/losses/ga.py" not in blur
    assert {"megatron_ext/losses/ga.py", "megatron_ext/updates/weighted_sum.py"} <= ga
    assert "megatron_ext/losses/npo.py" not in ga
    steps = {"steps/unlearn"}
    training = {f"training/{name}" for name in ("unlearning", "trainer", "step", "topics", "reference_model")}
    ours = {"losses/base", "updates/base", "model/loss_inputs", *steps, *training}
    assert {f"megatron_ext/{name}.py" for name in ours} <= ga & blur
    assert "megatron_ext/losses/hidden.py" in files("unlearned/rmu/seed-0")  # what several losses share
    assert "megatron_ext/losses/hidden.py" not in ga | blur


def test_steps_that_run_the_same_files_have_one_digest() -> None:
    """Snakemake is told this one text in place of all files, and runs a step again where it changes."""
    digest = {job: programs.source_digest(JOBS[job].spec) for job in JOBS}
    assert digest["evaluation/target/mini"] == digest["evaluation/retrain/mini"]
    others = ("evaluation/target/mini", "unlearned/ga/seed-0", "unlearned/npo/seed-0")
    assert len({digest[name] for name in others}) == len(others)


def test_late_imports_and_data_files_count() -> None:
    assert "megatron_ext/inference/generation.py" in files("evaluation/target/mini")  # imported inside a function
    assert "pipeline/benchmarks/tofu/evaluate.py" in files("evaluation/target/mini")  # found by name
    assert "megatron_ext/model/families/llama.py" in files("evaluation/target/mini")  # found by its package
    assert "pipeline/report/page.html.j2" in files("report")


def test_steps_do_not_run_each_others_programs() -> None:
    assert "megatron_ext/training/trainer.py" not in files("evaluation/target/mini")
    assert "pipeline/steps/prepare.py" not in files("models/base")
    assert not any(name.startswith("megatron_ext/checkpoint/reading") for name in files("report") | files("data/mini"))
    for job in JOBS:
        assert not {"pipeline/config/load.py", "pipeline/workflow/plan.py", "megatron_ext/specs.py"} & files(job)


def test_rounding_runs_nothing_of_megatron_core() -> None:
    spec = Plan(load("mini-robust"), Path("out")).jobs["robustness/target/int8"].spec
    found = {str(path.relative_to(programs.ROOT)) for path in programs.source_files(spec)}
    assert {"megatron_ext/steps/quantise.py", "megatron_ext/checkpoint/folders.py"} <= found
    assert not any("megatron.core" in (programs.ROOT / name).read_text() for name in found)


def test_fetching_again_needs_a_reason() -> None:
    """Other code of the pipeline, the generator of data for one, does not bring a published model once more."""
    jobs = Plan(load("tofu-llama-3.2-1b"), Path("out")).jobs
    for job, program in (("models/target", "fetch_model"), ("source/tofu", "fetch_data")):
        found = {str(path.relative_to(programs.ROOT)) for path in programs.source_files(jobs[job].spec)}
        assert {f"pipeline/steps/{program}.py", "pipeline/hub/download.py", "pipeline/data/sources.py"} <= found
        assert (
            not {
                "pipeline/benchmarks/tofu/data.py",
                "pipeline/benchmarks/tofu/synthetic.py",
                "pipeline/steps/prepare.py",
            }
            & found
        )


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(programs, "ROOT", tmp_path)
    programs._closure.cache_clear()
    programs._imports.cache_clear()
    return tmp_path


def closure(project: Path, texts: dict[str, str], start: str) -> set[str]:
    for name, text in texts.items():
        (project / name).parent.mkdir(parents=True, exist_ok=True)
        (project / name).write_text(text)
    return {str(path.relative_to(project)) for path in programs._closure((start,))}


CHECKED = """from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pipeline.checked
else:
    import pipeline.real
"""


def test_every_form_of_import(project: Path) -> None:
    texts = {
        "pipeline/__init__.py": "",
        "pipeline/a.py": "import pipeline.b\nfrom pipeline import c\nfrom . import d\nfrom .p import e\nimport os\n",
        "pipeline/b.py": "def f():\n    from pipeline.p.late import x\n",
        "pipeline/c.py": CHECKED,
        "pipeline/d.py": "if True:\n    import pipeline.a\n",
        "pipeline/p/__init__.py": "",
        "pipeline/p/e.py": "from ..f import g\n",
        "pipeline/p/late.py": "x = 1\n",
        "pipeline/f.py": "g = 1\n",
        "pipeline/real.py": "",
        "pipeline/checked.py": "",
        "pipeline/unused.py": "",
        "pipeline/p/unused.py": "",
    }
    found = closure(project, texts, "pipeline.a")
    assert found == set(texts) - {"pipeline/checked.py", "pipeline/unused.py", "pipeline/p/unused.py"}


@pytest.mark.parametrize("statement", ["import pipeline.p.q.late", "from pipeline.p.q.late import x"])
def test_packages_around_an_imported_module_run_too(project: Path, statement: str) -> None:
    """Python runs a package's ``__init__`` before a module of it, though no import names the package."""
    texts = {
        "pipeline/__init__.py": "",
        "pipeline/a.py": statement,
        "pipeline/p/__init__.py": "import pipeline.helper",
        "pipeline/p/q/__init__.py": "",
        "pipeline/p/q/late.py": "x = 1\n",
        "pipeline/helper.py": "",
    }
    assert closure(project, texts, "pipeline.a") == set(texts)
