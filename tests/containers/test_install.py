"""`containers/install`, for real, with pip and a few small packages of this test's own instead of an index."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.containers.scripts import FOLDER, load
from tests.containers.test_packages import HERE
from tests.containers.wheels import wheel

pytestmark = pytest.mark.slow

install = load("install")

CONSTRAINTS = "MegaTron_Core==0.16.1\ntorch==2.13.0\n\ntqdm==4.70.1\n"
# Builds the project's wheel without a package from an index.
BACKEND = """\
import sys
sys.path.insert(0, {tests!r})
from wheels import wheel

def build_wheel(folder, config_settings=None, metadata_directory=None):
    from pathlib import Path
    files = {{str(file): file.read_text() for file in Path("pipeline").rglob("*.py")}}
    return wheel(Path(folder), "megatron-unlearning", "0.1.0", ["megatron-core", "torch; extra == 'steps'"], files).name
"""


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project, wheels of what it needs, pip settings that know only those, and a base system with its own torch.

    ``base`` takes the part of a GPU image's site-packages: it is on the path of the Python that installs and of the
    environment's, and belongs to neither.
    """
    root = tmp_path_factory.mktemp("machine")
    for name in ("wheels", "base", "source/containers", "source/pipeline"):
        (root / name).mkdir(parents=True)
    hashed = [
        wheel(root / "wheels", "torch", "2.13.0+cpu"),
        wheel(root / "wheels", "megatron-core", "0.16.1", ["torch>=2.6", "tqdm"]),
        wheel(root / "wheels", "tqdm", "4.70.1"),
    ]
    wheel(root / "wheels", "torch", "2.14.0")
    wheel(root / "wheels", "megatron-core", "0.17.0", ["torch>=2.6", "tqdm"])
    with zipfile.ZipFile(wheel(root, "torch", "2.10.0a0+b4e4ee81d3.nv25.12")) as archive:
        archive.extractall(root / "base")
    (root / "pip.conf").write_text(f"[global]\nno-index = true\nfind-links = {root / 'wheels'}\n")
    source = root / "source"
    (source / "constraints.txt").write_text(CONSTRAINTS)
    entries = "".join(entry(file) for file in hashed)
    (source / "constraints-hashed.txt").write_text(f"# part: steps\n{entries}# part: work\nabsent==1 \\\n")
    (source / "containers/check").write_text("# the image's test\n")
    shutil.copy(FOLDER / "packages", source / "containers")
    (source / "pipeline/__init__.py").write_text("where = __file__\n")
    (source / "backend.py").write_text(BACKEND.format(tests=str(Path(__file__).parent)))
    (source / "pyproject.toml").write_text(
        '[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n'
        '[project]\nname = "megatron-unlearning"\ndynamic = ["version", "dependencies", "optional-dependencies"]\n'
    )
    return root


def entry(file: Path) -> str:
    """What ``constraints-hashed.txt`` says of a wheel."""
    name, version, *_ = file.name.split("-")
    where = f" ; {HERE}" if name == "torch" else ""
    return f"{name}=={version}{where} \\\n    --hash=sha256:{hashlib.sha256(file.read_bytes()).hexdigest()}\n"


def run(machine: Path, into: Path, *words: str, base: bool) -> subprocess.CompletedProcess[str]:
    """Run the script as an image's ``%post`` does, in an environment that tries to interfere as NVIDIA's images do."""
    (machine / "numpy1.txt").write_text("tqdm==1.0\n")
    environ = {**os.environ, "PIP_CONSTRAINT": str(machine / "numpy1.txt"), "PIP_NO_COLOR": "1"}
    environ.pop("PYTHONPATH", None)
    if base:
        environ["PYTHONPATH"] = str(machine / "base")
    options = ["--pip-config", machine / "pip.conf", "--source", machine / "source", "--into", into]
    line = [sys.executable, FOLDER / "install", *options, *words]
    return subprocess.run(line, env=environ, capture_output=True, text=True)


def ask(into: Path, machine: Path | None, code: str) -> object:
    """What the environment's Python says, from a folder where nothing of the project lies."""
    environ = {**os.environ, "PYTHONPATH": str(machine / "base") if machine else ""}
    line = [into / "venv/bin/python", "-c", f"import json; print(json.dumps({code}))"]
    done = subprocess.run(line, env=environ, cwd=into, check=True, capture_output=True, text=True)
    return json.loads(done.stdout)


VERSION = "__import__('importlib.metadata').metadata.version('{}')"


@pytest.fixture(scope="module")
def installed(machine: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What is made on an empty base."""
    into = tmp_path_factory.mktemp("installed")
    before = sorted((machine / "source").rglob("*"))
    done = run(machine, into, base=False)
    assert done.returncode == 0, done.stderr
    assert "torch: " not in done.stdout, "torch came without its hash"
    assert sorted((machine / "source").rglob("*")) == before, "installing wrote into the sources"
    return into


def test_an_empty_base(installed: Path) -> None:
    """The CPU image's part: everything in exact versions, compiled, the project not editable, and no pip."""
    for name, version in (("torch", "2.13.0+cpu"), ("megatron-core", "0.16.1"), ("tqdm", "4.70.1")):
        assert ask(installed, None, VERSION.format(name)) == version
    site = next((installed / "venv/lib").glob("python3.*")) / "site-packages"
    assert ask(installed, None, "__import__('pipeline').where") == str(site / "pipeline/__init__.py")
    assert not (site / "pip").exists()
    for module in ("pipeline", "torch", "megatron_core"):
        assert list((site / module / "__pycache__").glob("__init__.*.pyc")), f"{module} is not compiled"
    assert (installed / "constraints.txt").read_text() == CONSTRAINTS.replace("\n\n", "\n")
    assert (installed / "check").read_text() == "# the image's test\n"
    # The environment is closed: what the base system has is not seen.
    config = dict(line.split(" = ") for line in (installed / "venv/pyvenv.cfg").read_text().splitlines())
    assert config["include-system-site-packages"] == "false"


def test_the_base_system_s_torch_stays(machine: Path, tmp_path: Path) -> None:
    """The GPU image's part: constraints.txt and the wheels have other versions of torch, and none gets in."""
    files = {file: file.stat().st_mtime_ns for file in (machine / "base").rglob("*") if file.is_file()}
    done = run(machine, tmp_path, "--keep", "torch", base=True)
    assert done.returncode == 0, done.stderr
    assert {file: file.stat().st_mtime_ns for file in files} == files
    site = next((tmp_path / "venv/lib").glob("python3.*")) / "site-packages"
    assert not list(site.glob("torch*"))
    assert ask(tmp_path, machine, VERSION.format("torch")) == "2.10.0a0+b4e4ee81d3.nv25.12"
    assert ask(tmp_path, machine, VERSION.format("megatron-core")) == "0.16.1"
    assert "torch==2.10.0a0+b4e4ee81d3.nv25.12" in (tmp_path / "constraints.txt").read_text().split()
    config = dict(line.split(" = ") for line in (tmp_path / "venv/pyvenv.cfg").read_text().splitlines())
    assert config["include-system-site-packages"] == "true"


def test_without_keep_pip_would_replace_it(machine: Path, tmp_path: Path) -> None:
    """What the test above proves is not so by itself."""
    done = run(machine, tmp_path, base=True)
    assert done.returncode == 0, done.stderr
    site = next((tmp_path / "venv/lib").glob("python3.*")) / "site-packages"
    assert (site / "torch").is_dir()


def test_a_package_that_got_in_after_all_is_an_error(installed: Path) -> None:
    """Found by looking, too: pip is not trusted to have obeyed."""
    environment = installed / "venv"
    python = environment / "bin/python"
    assert not install.stays(python, "torch", "2.13.0+cpu", environment), "the environment's own"
    assert not install.stays(python, "torch", "2.10.0", environment)


def test_what_is_to_be_kept_must_be_there(machine: Path, tmp_path: Path) -> None:
    done = run(machine, tmp_path / "into", "--keep", "torch", "--keep", "no-such-package", base=True)
    assert done.returncode == 1
    assert "--keep no-such-package: " in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "into").exists()


def test_what_pip_cannot_do_is_an_error(machine: Path, tmp_path: Path) -> None:
    (machine / "empty.conf").write_text("[global]\nno-index = true\n")
    done = run(machine, tmp_path, "--pip-config", str(machine / "empty.conf"), base=False)
    assert done.returncode == 1
    assert "packages: pip exits 1" in done.stderr and "Traceback" not in done.stderr


def test_a_file_with_another_hash_is_not_installed(machine: Path, tmp_path: Path) -> None:
    """An index that gives other contents under the same name and version, which exact versions alone would take."""
    copy = shutil.copytree(machine, tmp_path / "machine")
    (copy / "pip.conf").write_text(f"[global]\nno-index = true\nfind-links = {copy / 'wheels'}\n")
    wheel(copy / "wheels", "tqdm", "4.70.1", files={"tqdm/__init__.py": "version = 'another'\n"})
    done = run(copy, tmp_path / "into", base=False)
    assert done.returncode == 1
    assert "THESE PACKAGES DO NOT MATCH THE HASHES" in done.stderr
    assert not list((tmp_path / "into/venv/lib").glob("python3.*/site-packages/tqdm"))


def test_constraints_take_the_kept_versions() -> None:
    pinned = "torch==2.13.0\nTransformer_Engine==2.9\ntorchvision==0.1\nnumpy==2.4.6\n"
    kept = {"torch": "2.10.0a0+b4.nv25.12", "transformer-engine": "2.10.0+769ed778", "apex": "0.1"}
    assert install.constrain(pinned, kept).splitlines() == [
        "torchvision==0.1",
        "numpy==2.4.6",
        "torch==2.10.0a0+b4.nv25.12",
        "transformer-engine==2.10.0+769ed778",
        "apex==0.1",
    ]
    assert install.constrain(pinned, {}) == pinned
