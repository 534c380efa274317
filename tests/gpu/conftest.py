"""Where the tests of this folder run and what they compare with.

``UNLEARN_GPU_DEVICE=cpu`` runs them without a GPU, to see that they would run; ``UNLEARN_GPU_REFERENCES`` is the folder
that ``tests.gpu.cases`` has written; a JSON line of each test goes to the file ``UNLEARN_GPU_RESULTS``.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.gpu import cases

DEVICE = os.environ.get("UNLEARN_GPU_DEVICE", "cuda")
REFERENCES = Path(
    os.environ.get("UNLEARN_GPU_REFERENCES", Path(__file__).parents[2] / "results" / "gpu-proof" / "references")
)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave these tests out unless ``-m`` asks for them by name: in their process megatron-core must use the GPU,
    and others have made it use the CPU. Without the device, each says why it is skipped."""
    own = [item for item in items if item.get_closest_marker("gpu")]
    if "gpu" not in config.option.markexpr:
        items[:] = [item for item in items if item not in own]
        config.hook.pytest_deselected(items=own)
        return
    import torch

    if DEVICE == "cuda" and not torch.cuda.is_available():
        for item in own:
            item.add_marker(pytest.mark.skip(reason=f"needs a GPU, and torch {torch.__version__} sees none"))


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """A JSON line a test, with the numbers that it recorded."""
    if "UNLEARN_GPU_RESULTS" not in os.environ or not (report.when == "call" or report.outcome != "passed"):
        return
    row: dict[str, Any] = {"section": "correctness", "test": report.nodeid.split("::", 1)[-1]}
    row |= {"outcome": report.outcome, "seconds": round(report.duration, 2), **dict(report.user_properties)}
    if report.outcome == "failed":
        row["error"] = str(report.longrepr)[-800:]
    with Path(os.environ["UNLEARN_GPU_RESULTS"]).open("a") as file:
        file.write(json.dumps(row) + "\n")


@pytest.fixture(scope="session")
def references() -> Path:
    """The folder of ``tests.gpu.cases``."""
    made = REFERENCES / "references.json"
    command = f"CUDA_VISIBLE_DEVICES= python -m tests.gpu.cases {REFERENCES}"
    assert made.exists(), f"{REFERENCES} has no references; make them by: {command}"
    assert json.loads(made.read_text())["key"] == cases.key(), f"{made} is of other code; make it anew by: {command}"
    return REFERENCES


@pytest.fixture(scope="session")
def expected(references: Path) -> dict[str, Any]:
    """What was computed on the CPU."""
    found: dict[str, Any] = json.loads((references / "references.json").read_text())
    return found


@pytest.fixture(scope="session")
def ranks() -> Iterator[Any]:
    """The ranks of a single process, in fp32."""
    from megatron_ext.config import Runtime
    from megatron_ext.distributed import process_groups

    # cuBLAS reads it when it is first used, and repeats its results with it.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    with process_groups.start(Runtime.model_validate({"device": DEVICE})) as alone:
        yield alone


@pytest.fixture(scope="session")
def half(ranks: Any) -> Any:
    """The same in bf16."""
    import torch

    return dataclasses.replace(ranks, dtype=torch.bfloat16)


@pytest.fixture
def deterministic(ranks: Any) -> Iterator[None]:
    """Only kernels that repeat, as with ``runtime.deterministic``."""
    import torch

    from megatron_ext.config import Runtime
    from megatron_ext.distributed import kernels

    kernels.choose(Runtime(deterministic=True))
    yield
    torch.use_deterministic_algorithms(False)
