"""What must be there before a workflow runs on the cluster: packages, services, a clone of this checkout, an image."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.cluster.clone import Clone, User, copy

HERE = Path(__file__).parent
USER = User("unlearn")


class NotHere(Exception):
    """A machine that is not for these tests, and why."""


@contextmanager
def folder(failed: Callable[[], bool]) -> Iterator[Path]:
    """A folder that the user and every node can read; removed at the end, but kept with its logs where that ``failed``.

    ``CLUSTER_TEST_FOLDER`` names one to keep and use again, with the clone's environment and the image of the same
    sources in it.
    """
    if given := os.environ.get("CLUSTER_TEST_FOLDER"):
        Path(given).mkdir(parents=True, exist_ok=True)
        yield Path(given).resolve()
        return
    made = Path(tempfile.mkdtemp(prefix="unlearn-cluster-", dir="/var/tmp"))
    made.chmod(0o755)
    yield made
    if failed():
        print(f"\nkept: {made}")
    else:
        shutil.rmtree(made)


@contextmanager
def cluster(folder: Path, *options: str) -> Iterator[None]:
    """Two nodes that take jobs, in ``folder``, installed where that is needed; ``options`` are ``cluster.py start``'s.

    Raises:
        NotHere: Slurm and Apptainer cannot be installed on this machine.
    """
    done = subprocess.run([HERE / "install.sh", USER.name], capture_output=True, text=True)
    if done.returncode:
        raise NotHere(f"{HERE / 'install.sh'} exits with {done.returncode}: {done.stderr.strip()}")
    _cluster("start", folder, *options)
    try:
        yield
    finally:
        _cluster("stop", folder)


@contextmanager
def other_cluster(folder: Path, other: Path, *options: str) -> Iterator[None]:
    """The cluster in ``other`` in place of the one in ``folder``, which runs before and after."""
    _cluster("stop", folder)
    try:
        with cluster(other, *options):
            yield
    finally:
        _cluster("start", folder)


def _cluster(action: str, folder: Path, *options: str) -> None:
    subprocess.run([sys.executable, HERE / "cluster.py", action, folder, *options], check=True)


def clone(folder: Path) -> Clone:
    """A clone as a user has it on a login node: nothing is installed but what submits jobs."""
    made = copy(folder / "clone", USER)
    made.user.must("make", "install-login", "PYTHON=/usr/bin/python3", cwd=made.folder, timeout=900)
    return made


def image(clone: Clone) -> Path:
    """The image for CPUs, built by the user, or the one that ``CLUSTER_TEST_IMAGE`` names."""
    if given := os.environ.get("CLUSTER_TEST_IMAGE"):
        return Path(given).resolve()
    clone.user.must("make", "image-cpu", cwd=clone.folder, timeout=900)
    return clone.folder / "containers/images/unlearn-cpu.sif"
