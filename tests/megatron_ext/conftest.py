"""Fixtures for tests of the model-parallel part."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from megatron_ext.distributed import cpu

# Before a test module imports megatron-core, which loads torch's compiler otherwise.
cpu.install()


@pytest.fixture(scope="module")
def alone() -> Iterator[Any]:
    """The ranks of a single process on the CPU, in fp32, for the tests of a module that start no others in process."""
    from megatron_ext.config import Runtime
    from megatron_ext.distributed import process_groups

    with process_groups.start(Runtime(device="cpu")) as ranks:
        yield ranks


@pytest.fixture(scope="session")
def inference(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A folder of models, and what transformers computes with them (see ``inference_cases.write``)."""
    from tests.support import inference_cases

    folder = tmp_path_factory.mktemp("inference")
    return folder, inference_cases.write(folder)
