"""A cluster, an image and a clone of this checkout, made once for all tests of this folder.

Set ``CLUSTER_TEST_FOLDER`` to keep and use again what is in it: the clone's environment, and the image of the same
sources. ``CLUSTER_TEST_IMAGE`` names an image to use in place of building one. Both shorten work on these tests only.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster import ready
from tests.cluster.clone import Clone


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Instance]) -> None:
    """These tests install packages and start services: they run where ``-m`` asks for them by name."""
    if "cluster" not in config.option.markexpr:
        left_out = [item for item in items if item.get_closest_marker("cluster")]
        items[:] = [item for item in items if item not in left_out]
        config.hook.pytest_deselected(items=left_out)


@pytest.fixture(scope="session")
def folder(request: pytest.FixtureRequest) -> Iterator[Path]:
    """A folder that the user and every node can read; where a test failed, it is kept, with every log."""
    with ready.folder(lambda: request.session.testsfailed > 0) as made:
        yield made


@pytest.fixture(scope="session")
def cluster(folder: Path) -> Iterator[None]:
    """Two nodes that take jobs."""
    try:
        with ready.cluster(folder / "cluster"):
            yield
    except ready.NotHere as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def clone(cluster: None, folder: Path) -> Clone:
    """A clone as a user has it on a login node: nothing is installed but what submits jobs."""
    return ready.clone(folder)


@pytest.fixture(scope="session")
def image(clone: Clone) -> Path:
    """The image for CPUs, built by the user."""
    return ready.image(clone)
