"""`containers/packages` and torch: real pip, and small wheels of this test's own in place of an index."""

from __future__ import annotations

import hashlib
import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from tests.containers.scripts import FOLDER
from tests.containers.wheels import wheel

pytestmark = pytest.mark.slow

HERE = f'python_version == "{sys.version_info[0]}.{sys.version_info[1]}" and platform_machine == "{platform.machine()}"'
ELSEWHERE = 'python_version == "3.2" and platform_machine == "s390x"'


def run(folder: Path, marker: str, *options: str) -> subprocess.CompletedProcess[str]:
    """What would be installed of a file that knows one build of torch, where ``marker`` holds."""
    known = hashlib.sha256(wheel(folder, "torch", "2.13.0+cpu").read_bytes()).hexdigest()
    (folder / "hashed.txt").write_text(f"# part: steps\ntorch==2.13.0+cpu ; {marker} \\\n    --hash=sha256:{known}\n")
    environ = {name: value for name, value in os.environ.items() if not name.startswith("PIP_")}
    line = [sys.executable, FOLDER / "packages", "steps", "--file", folder / "hashed.txt", "--dry-run", *options]
    line += ["--ignore-installed", "--find-links", folder / "index", "--no-cache-dir", "--quiet", "--quiet"]
    line += ["--report", folder / "report.json"]
    environ |= {"PIP_CONFIG_FILE": os.devnull, "LC_ALL": "C"}
    return subprocess.run(line, env=environ, capture_output=True, text=True)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "index").mkdir()
    return tmp_path


@pytest.mark.parametrize("listed", [False, True])
def test_where_no_hash_is_known_the_build_comes_without(listed: bool, folder: Path) -> None:
    """No index lists a build for CPUs, or its hash is known for another Python alone; a line says which."""
    wheel(folder / "index", "torch", "2.13.0", ["nvidia-all"])
    wheel(folder / "index", "nvidia-all", "13.0")
    if listed:
        wheel(folder / "index", "torch", "2.13.0+cpu", files={"torch/__init__.py": "version = 'for another Python'"})
    done = run(folder, ELSEWHERE if listed else HERE, "--no-index")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("torch: ") and "without hashes" in done.stdout
    assert ("constraints-hashed.txt" in done.stdout) == listed
    found = (folder / "report.json").read_text()
    assert ("2.13.0+cpu" in found, "nvidia_all-13.0" in found) == (listed, not listed)


def test_another_hash_ends_the_installation(folder: Path) -> None:
    """Of a build that is known here. Contents that were exchanged are no reason to trust an index."""
    wheel(folder / "index", "torch", "2.13.0+cpu", files={"torch/__init__.py": "version = 'exchanged'"})
    wheel(folder / "index", "torch", "2.13.0")
    done = run(folder, HERE, "--no-index")
    assert (done.returncode, done.stdout) == (1, "") and not (folder / "report.json").exists()
    assert "THESE PACKAGES DO NOT MATCH THE HASHES" in done.stderr and "HASHES=no" in done.stderr


def test_an_index_that_does_not_answer_lists_nothing_and_is_no_reason(folder: Path) -> None:
    """pip goes on with its other places, and says the same as where no index has the build."""
    wheel(folder / "index", "torch", "2.13.0")
    done = run(folder, HERE, "--index-url", "http://127.0.0.1:1/simple", "--retries", "0")
    assert (done.returncode, done.stdout) == (1, "") and not (folder / "report.json").exists()
    assert "No matching distribution found for torch" in done.stderr and "Traceback" not in done.stderr
