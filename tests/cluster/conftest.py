"""A cluster, an image and a clone of this checkout, made once for all tests of this folder.

Set ``CLUSTER_TEST_FOLDER`` to keep and use again what is in it: the clone's environment, and the image of the same
sources. ``CLUSTER_TEST_IMAGE`` names an image to use in place of building one. Both shorten work on these tests only.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.clone import Clone, User, copy

HERE = Path(__file__).parent
USER = User("unlearn")
NOT_HERE = 3  # exit status of install.sh on a machine that it is not for


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Instance]) -> None:
    """These tests install packages and start services: they run where ``-m`` asks for them by name."""
    if "cluster" not in config.option.markexpr:
        left_out = [item for item in items if item.get_closest_marker("cluster")]
        items[:] = [item for item in items if item not in left_out]
        config.hook.pytest_deselected(items=left_out)


@pytest.fixture(scope="session")
def folder(request: pytest.FixtureRequest) -> Iterator[Path]:
    """A folder that the user and every node can read; where a test failed, it is kept, with every log."""
    if given := os.environ.get("CLUSTER_TEST_FOLDER"):
        Path(given).mkdir(parents=True, exist_ok=True)
        yield Path(given).resolve()
        return
    made = Path(tempfile.mkdtemp(prefix="unlearn-cluster-", dir="/var/tmp"))
    made.chmod(0o755)
    yield made
    if request.session.testsfailed:
        print(f"\nkept: {made}")
    else:
        shutil.rmtree(made)


@pytest.fixture(scope="session")
def cluster(folder: Path) -> Iterator[None]:
    """Two nodes that take jobs."""
    done = subprocess.run([HERE / "install.sh", USER.name], capture_output=True, text=True)
    if done.returncode == NOT_HERE:
        pytest.skip(done.stderr.strip())
    if done.returncode:
        pytest.skip(f"{HERE / 'install.sh'} exits with {done.returncode}: {done.stderr.strip()}")
    command = [sys.executable, HERE / "cluster.py"]
    subprocess.run([*command, "start", folder / "cluster"], check=True)
    yield
    subprocess.run([*command, "stop", folder / "cluster"], check=True)


@pytest.fixture(scope="session")
def image(clone: Clone) -> Path:
    """The image for CPUs, built by the user."""
    if given := os.environ.get("CLUSTER_TEST_IMAGE"):
        return Path(given).resolve()
    clone.user.must("make", "image-cpu", cwd=clone.folder, timeout=900)
    return clone.folder / "containers/images/unlearn-cpu.sif"


@pytest.fixture(scope="session")
def clone(cluster: None, folder: Path) -> Clone:
    """A clone as a user has it on a login node: nothing is installed but what submits jobs."""
    made = copy(folder / "clone", USER)
    made.user.must("make", "install-login", "PYTHON=/usr/bin/python3", cwd=made.folder, timeout=900)
    return made
