"""`containers/build`: what an image is named after, what it is built with, and what it does with this machine."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest

from tests.containers.scripts import FOLDER, ROOT, load

build = load("build")

# Stands in for apptainer: records how it was called, and "builds" by writing what it was given into the image.
APPTAINER = """#!{python}
import json, os, sys, pathlib
words = sys.argv[1:]
binds = [words[i + 1].split(":") for i, word in enumerate(words) if word == "--bind"]
arguments = dict(words[i + 1].split("=", 1) for i, word in enumerate(words) if word == "--build-arg")
source = pathlib.Path(arguments["SOURCE"])
record = dict(
    words=words, binds=binds, arguments=arguments,
    environ={{name: value for name, value in os.environ.items() if "APPTAINER" in name}},
    source=sorted(str(file.relative_to(source)) for file in source.rglob("*") if file.is_file()),
    pip=(pathlib.Path(binds[0][0]) / "pip.conf").read_text(),
    mounts=sorted(os.listdir(binds[0][0])),
)
pathlib.Path({record!r}).write_text(json.dumps(record))
if {code}:
    sys.exit({code})
pathlib.Path(words[-2]).write_bytes(b"an image")
"""
APT = """#!/bin/sh
echo "$@" > {record}
echo http://one.invalid/debian/
"""
PIP_LIST = """\
:env:.find-links='{wheels}'
:env:.disable-pip-version-check='1'
global.cert='{bundle}'
global.constraint='/somewhere/constraints.txt'
global.extra-index-url='file://{index}/simple https://user:secret@wheels.invalid/simple'
global.find-links='/not/used/because/the/environment/has/one'
install.timeout='60'
"""


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """The files that an image is made from, small."""
    root = tmp_path / "clone"
    (root / "containers").mkdir(parents=True)
    for name in ("build", "install", "packages", "check", "unlearn-cpu.def", "unlearn-gpu.def"):
        shutil.copy(FOLDER / name, root / "containers" / name)
    for name in ("constraints.txt", "constraints-hashed.txt", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, root / name)
    for name in (
        "pipeline/__init__.py",
        "pipeline/report/page.html.j2",
        "pipeline/workflow/rules/a.smk",
        "megatron_ext/a.py",
    ):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(f"# {name}\n")
    return root


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Path]:
    """A machine whose apptainer, apt and pip settings are stand-ins; paths of what they leave and of what they name."""
    paths = {name: tmp_path / name for name in ("bin", "wheels", "index", "apptainer.json", "apt.txt", "bundle.crt")}
    for name in ("bin", "wheels", "index/simple"):
        (tmp_path / name).mkdir(parents=True)
    paths["bundle.crt"].write_text("a certificate")
    stand_in(paths, 0)
    program(paths["bin"] / "apt-get", APT.format(record=paths["apt.txt"]))
    for name in [name for name in os.environ if name.upper().startswith(("APPTAINER", "SINGULARITY", "HTTPS_PROXY"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PATH", f"{paths['bin']}:{os.environ['PATH']}")
    listed = PIP_LIST.format(wheels=paths["wheels"], bundle=paths["bundle.crt"], index=paths["index"])
    monkeypatch.setattr(build, "pip_list", lambda: listed)
    monkeypatch.setattr(build.os, "geteuid", lambda: 1000)
    return paths


def stand_in(paths: dict[str, Path], code: int) -> None:
    text = APPTAINER.format(python=sys.executable, record=str(paths["apptainer.json"]), code=code)
    program(paths["bin"] / "apptainer", text)


def program(path: Path, text: str) -> None:
    path.write_text(text)
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


def run(tree: Path, monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    monkeypatch.setattr(build, "ROOT", tree)
    return build.main([*words, "--images", str(tree / "images")])


def recorded(machine: dict[str, Path]) -> dict:
    return json.loads(machine["apptainer.json"].read_text())


# The name


def test_equal_content_has_an_equal_name_wherever_it_lies(tree: Path, tmp_path: Path) -> None:
    other = shutil.copytree(tree, tmp_path / "elsewhere")
    os.utime(other / "pipeline/__init__.py", (1, 1))
    first, second = build.Image("cpu", tree), build.Image("cpu", other)
    assert first.name == second.name == f"unlearn-cpu-{first.content[:12]}.sif"
    assert len(first.content) == 64


@pytest.mark.parametrize(
    "part",
    [
        "containers/unlearn-cpu.def",
        "containers/install",
        "containers/packages",
        "containers/check",
        "constraints.txt",
        "constraints-hashed.txt",
        "pipeline/__init__.py",
        "pipeline/report/page.html.j2",
        "pipeline/workflow/rules/a.smk",
        "megatron_ext/a.py",
    ],
)
def test_each_part_changes_the_name(tree: Path, part: str) -> None:
    before = build.Image("cpu", tree).content
    with (tree / part).open("a") as file:
        file.write("# changed\n")
    assert build.Image("cpu", tree).content != before


def test_a_new_a_missing_and_a_renamed_source_change_the_name(tree: Path) -> None:
    found = [build.Image("cpu", tree).content]
    (tree / "pipeline" / "new.py").touch()
    found.append(build.Image("cpu", tree).content)
    (tree / "pipeline" / "new.py").rename(tree / "pipeline" / "other.py")
    found.append(build.Image("cpu", tree).content)
    (tree / "megatron_ext" / "a.py").unlink()
    found.append(build.Image("cpu", tree).content)
    assert len(set(found)) == 4


@pytest.mark.parametrize(
    "file",
    [
        "README.md",
        "LICENSE",
        "containers/build",
        "containers/unlearn-gpu.def",
        "containers/images/unlearn-cpu.sif",
        "workflow_configs/a.yaml",
        "Snakefile",
        "tests/test_a.py",
        "pipeline/__pycache__/a.cpython-311.pyc",
        "pipeline/.a.py.swp",
        "pipeline/a.py~",
    ],
)
def test_nothing_else_changes_it(tree: Path, file: str) -> None:
    before = build.Image("cpu", tree).content
    (tree / file).parent.mkdir(parents=True, exist_ok=True)
    with (tree / file).open("a") as opened:
        opened.write("# changed\n")
    assert build.Image("cpu", tree).content == before


def test_pyproject_counts_where_it_is_of_the_installed_project(tree: Path) -> None:
    path = tree / "pyproject.toml"
    text = path.read_text()
    before = build.Image("cpu", tree).content
    path.write_text(text.replace("line-length = 120", "line-length = 100"))
    assert build.Image("cpu", tree).content == before
    path.write_text(text.replace("torch>=2.6", "torch>=2.7"))
    assert build.Image("cpu", tree).content != before


def test_another_base_is_another_image(tree: Path) -> None:
    image = build.Image("gpu", tree)
    assert image.base == "nvcr.io/nvidia/pytorch:25.12-py3"
    assert build.Image("gpu", tree, image.base).name == image.name
    assert build.Image("gpu", tree, "registry.invalid/pytorch:25.12-py3").name != image.name
    assert build.Image("cpu", tree).base == "debian:bookworm"


def test_every_committed_source_counts() -> None:
    """Of this project as it is: nothing that `git` knows of the packages is overlooked."""
    listed = subprocess.run(["git", "-C", ROOT, "ls-files", *build.PACKAGES], capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("this is not a clone")
    present = {name for name in listed.stdout.splitlines() if (ROOT / name).is_file()}
    assert present <= set(build.Image("cpu", ROOT).files)


def test_print_name_builds_nothing(tree: Path, monkeypatch, machine, capsys) -> None:
    assert run(tree, monkeypatch, "cpu", "--print-name") == 0
    assert capsys.readouterr().out == build.Image("cpu", tree).name + "\n"
    assert not (tree / "images").exists() and not machine["apptainer.json"].exists()


# Building


def test_an_image_its_record_and_its_link(tree: Path, monkeypatch, machine) -> None:
    assert run(tree, monkeypatch, "cpu") == 0
    name = build.Image("cpu", tree).name
    images = tree / "images"
    assert sorted(path.name for path in images.iterdir()) == sorted([name, f"{name[:-4]}.json", "unlearn-cpu.sif"])
    assert (images / "unlearn-cpu.sif").readlink() == Path(name)
    record = json.loads((images / name).with_suffix(".json").read_text())
    assert record.pop("seconds") >= 0
    assert record == {
        "kind": "cpu",
        "content": build.Image("cpu", tree).content,
        "sha256": hashlib.sha256(b"an image").hexdigest(),
        "bytes": len(b"an image"),
        "base": "debian:bookworm",
        "base_given": False,
    }


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"content": '])
def test_a_record_that_is_not_whole_names_no_image(text: str, tree: Path, monkeypatch, machine) -> None:
    """Its image is built again."""
    assert run(tree, monkeypatch, "cpu") == 0
    image = build.Image("cpu", tree)
    (tree / "images" / image.name).with_suffix(".json").write_text(text)
    assert image.find(tree / "images") is None


def test_what_is_there_is_not_built_again(tree: Path, monkeypatch, machine) -> None:
    assert run(tree, monkeypatch, "cpu") == 0
    first = (tree / "images" / "unlearn-cpu.sif").readlink()
    (tree / "pipeline" / "__init__.py").write_text("changed = 1\n")
    assert run(tree, monkeypatch, "cpu") == 0
    assert (tree / "images" / "unlearn-cpu.sif").readlink() != first
    # Back to the first content: the link moves, without apptainer.
    (tree / "pipeline" / "__init__.py").write_text("# pipeline/__init__.py\n")
    machine["apptainer.json"].unlink()
    (machine["bin"] / "apptainer").unlink()
    assert run(tree, monkeypatch, "cpu") == 0
    assert (tree / "images" / "unlearn-cpu.sif").readlink() == first
    # An image that was cut short is no image.
    (tree / "images" / first).write_bytes(b"an")
    stand_in(machine, 0)
    assert run(tree, monkeypatch, "cpu") == 0
    assert (tree / "images" / first).read_bytes() == b"an image" and machine["apptainer.json"].exists()


def test_a_failed_build_leaves_nothing_and_moves_no_link(tree: Path, monkeypatch, machine, capsys) -> None:
    assert run(tree, monkeypatch, "cpu") == 0
    before = sorted((tree / "images").iterdir())
    (tree / "pipeline" / "__init__.py").write_text("changed = 1\n")
    stand_in(machine, 255)
    assert run(tree, monkeypatch, "cpu") == 1
    assert "apptainer could not build" in capsys.readouterr().err
    assert sorted((tree / "images").iterdir()) == before
    assert not Path(recorded(machine)["arguments"]["SOURCE"]).exists(), "the temporary folder stays"


# Is told to end while it builds, and takes its time to remove what it has made so far.
INTERRUPTED = """#!{python}
import os, pathlib, signal, sys, time
made = pathlib.Path({made!r})
def end(*_):
    time.sleep(0.6)
    made.unlink()
    sys.exit(1)
signal.signal(signal.SIGTERM, end)
made.write_text("gigabytes")
pathlib.Path(sys.argv[-2]).write_bytes(b"a part")
os.kill(os.getppid(), {number})
time.sleep(60)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_build_that_is_stopped_leaves_nothing(number, tree: Path, monkeypatch, machine, tmp_path, capsys) -> None:
    """Neither of ours nor of Apptainer's, which is not killed before it has cleared up."""
    monkeypatch.setenv("APPTAINER_TMPDIR", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    text = INTERRUPTED.format(python=sys.executable, made=str(tmp_path / "rootfs"), number=int(number))
    program(machine["bin"] / "apptainer", text)
    before = signal.getsignal(number)
    assert run(tree, monkeypatch, "cpu") == 130
    assert signal.getsignal(number) is before
    assert "stopped; no image was made" in capsys.readouterr().err
    assert not (tmp_path / "rootfs").exists()
    assert not list((tree / "images").iterdir()) and not list((tmp_path / "temporary").iterdir())


def test_a_folder_that_takes_no_image_is_said_before_the_build(tree: Path, monkeypatch, machine, capsys) -> None:
    (tree / "images").write_text("a file in its place")
    assert run(tree, monkeypatch, "cpu") == 1
    assert f"File exists: '{tree / 'images'}'" in capsys.readouterr().err
    (tree / "images").unlink()
    monkeypatch.setenv("APPTAINER_TMPDIR", str(tree / "nowhere"))
    assert run(tree, monkeypatch, "cpu") == 1
    assert f"No such file or directory: '{tree / 'nowhere'}" in capsys.readouterr().err
    assert not machine["apptainer.json"].exists()


def test_what_apptainer_is_given_for_cpu(tree: Path, monkeypatch, machine) -> None:
    monkeypatch.setenv("APPTAINER_BIND", "/data")
    monkeypatch.setenv("APPTAINERENV_HF_HOME", "/hub")
    monkeypatch.setenv("APPTAINER_CACHEDIR", "/cache")
    assert run(tree, monkeypatch, "cpu") == 0
    call = recorded(machine)
    assert call["words"][0] == "build" and call["words"][-1] == str(tree / "containers" / "unlearn-cpu.def")
    assert call["words"][call["words"].index("--mksquashfs-args") + 1].startswith("-comp zstd ")
    assert set(call["arguments"]) == {"SOURCE", "CONTENT", "MIRROR"}
    assert call["arguments"]["MIRROR"] == "http://one.invalid/debian/"
    assert call["arguments"]["CONTENT"] == build.Image("cpu", tree).content
    assert "Codename: bookworm" in machine["apt.txt"].read_text()
    assert call["environ"] == {"APPTAINER_CACHEDIR": "/cache"}
    assert set(call["source"]) == {*build.Image("cpu", tree).files, "README.md", "LICENSE"}
    assert call["words"].count("--bind") == 3


def test_what_apptainer_is_given_for_gpu(tree: Path, monkeypatch, machine) -> None:
    assert run(tree, monkeypatch, "gpu") == 0
    assert set(recorded(machine)["arguments"]) == {"SOURCE", "CONTENT", "BASE"}
    assert recorded(machine)["arguments"]["BASE"] == "nvcr.io/nvidia/pytorch:25.12-py3"
    assert not machine["apt.txt"].exists()
    assert run(tree, monkeypatch, "gpu", "--base", "registry.invalid/pytorch:25.12-py3") == 0
    assert recorded(machine)["arguments"]["BASE"] == "registry.invalid/pytorch:25.12-py3"


def test_a_mirror_that_is_said_goes_before_apt_s(tree: Path, monkeypatch, machine) -> None:
    assert run(tree, monkeypatch, "cpu", "--mirror", "http://two.invalid/debian") == 0
    assert recorded(machine)["arguments"]["MIRROR"] == "http://two.invalid/debian"
    assert not machine["apt.txt"].exists()


def test_a_machine_without_debian_sources(tree: Path, monkeypatch, machine, capsys) -> None:
    program(machine["bin"] / "apt-get", "#!/bin/sh\n")
    assert run(tree, monkeypatch, "cpu") == 1
    assert "Debian bookworm; say --mirror URL" in capsys.readouterr().err


@pytest.mark.parametrize("digest", ["", "sha256:", f"sha256:{'a' * 63}", f"sha256:{'G' * 64}", f"md5:{'a' * 64}"])
def test_a_digest_that_is_none_is_refused(digest: str, tree: Path, monkeypatch, machine, capsys) -> None:
    assert run(tree, monkeypatch, "gpu", "--base", f"registry.invalid/pytorch@{digest}") == 1
    assert f"{digest!r} is not a digest" in capsys.readouterr().err


def test_a_base_can_be_one_image_for_ever(tree: Path, monkeypatch, machine, capsys) -> None:
    assert run(tree, monkeypatch, "gpu") == 0
    assert "--pin" in capsys.readouterr().out, "a tag can be moved"
    base = f"registry.invalid/pytorch@sha256:{'0a' * 32}"
    assert run(tree, monkeypatch, "gpu", "--base", base) == 0
    assert recorded(machine)["arguments"]["BASE"] == base and "--pin" not in capsys.readouterr().out
    records = [json.loads(file.read_text()) for file in (tree / "images").glob("unlearn-gpu-*.json")]
    assert {record["base"]: record["base_given"] for record in records}[base] is True
    assert sorted(record["base_given"] for record in records) == [False, True]


class Registry(BaseHTTPRequestHandler):
    """Sends a manifest to those who have its token, as public registries do."""

    manifest = b'{"schemaVersion": 2}'

    def do_GET(self) -> None:
        where = urlsplit(self.path)
        if where.path == "/token" and parse_qs(where.query) == {"service": ["here"], "scope": ["nvidia/pytorch:pull"]}:
            return self.answer(200, b'{"token": "secret"}')
        if where.path != "/v2/nvidia/pytorch/manifests/25.12-py3" or "oci.image.index" not in self.headers["Accept"]:
            return self.answer(404, b"")
        if self.headers.get("Authorization") == "Bearer secret":
            return self.answer(200, self.manifest)
        host, port = self.server.server_address[:2]
        asked = f'Bearer realm="http://{host}:{port}/token",service="here",scope="nvidia/pytorch:pull"'
        self.answer(401, b"", {"WWW-Authenticate": asked})

    def answer(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Print nothing."""


@pytest.fixture
def registry(tree: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address of a registry on this machine, which the definition's base is in."""
    for name in ("http_proxy", "HTTP_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with ThreadingHTTPServer(("127.0.0.1", 0), Registry) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        host = f"127.0.0.1:{server.server_address[1]}"
        definition = tree / "containers" / "unlearn-gpu.def"
        definition.write_text(definition.read_text().replace("nvcr.io", host))
        yield host
        server.shutdown()


def test_a_base_is_pinned_by_what_its_registry_sends(registry: str, tree: Path, monkeypatch, machine, capsys) -> None:
    """Then every build takes exactly that image, and one whose name was given to another is refused."""
    before = build.Image("gpu", tree)
    digest = f"sha256:{hashlib.sha256(Registry.manifest).hexdigest()}"
    assert run(tree, monkeypatch, "gpu", "--pin") == 0
    assert (tree / "containers" / "unlearn-gpu.base").read_text() == f"{before.base} {digest}\n"
    image = build.Image("gpu", tree)
    assert image.base == f"{registry}/nvidia/pytorch@{digest}" and image.name != before.name
    assert run(tree, monkeypatch, "gpu", "--pin") == 0, "still the same"
    capsys.readouterr()
    assert run(tree, monkeypatch, "gpu") == 0
    assert recorded(machine)["arguments"]["BASE"] == image.base and "--pin" not in capsys.readouterr().out
    assert json.loads((tree / "images" / image.name).with_suffix(".json").read_text())["base"] == image.base
    monkeypatch.setattr(Registry, "manifest", b'{"schemaVersion": 2, "manifests": []}')
    assert run(tree, monkeypatch, "gpu", "--pin") == 1
    assert digest in capsys.readouterr().err
    assert build.Image("gpu", tree).base == image.base
    assert run(tree, monkeypatch, "gpu", "--pin", "--base", before.base) == 0
    assert capsys.readouterr().out.startswith(f"--base {registry}/nvidia/pytorch@sha256:")


def test_what_cannot_be_pinned_is_said(registry: str, tree: Path, monkeypatch, machine, capsys) -> None:
    assert run(tree, monkeypatch, "gpu", "--pin", "--base", f"{registry}/nvidia/absent:1") == 1
    assert "/v2/nvidia/absent/manifests/1: HTTPError: HTTP Error 404" in capsys.readouterr().err
    assert run(tree, monkeypatch, "gpu", "--pin", "--base", f"{registry}/a@sha256:{'a' * 64}") == 1
    file = tree / "containers" / "unlearn-gpu.base"
    for text, expected in (("other:1 sha256:" + "a" * 64, "other:1"), ("no digest", "'digest' is not a digest")):
        file.write_text(text)
        assert run(tree, monkeypatch, "gpu") == 1
        assert expected in capsys.readouterr().err


@pytest.mark.parametrize("page", [b"<html>Log in first</html>", b"[]", b'{"errors": []}', b"\xff"])
def test_a_page_in_place_of_a_manifest_is_not_pinned(page, registry, tree, monkeypatch, machine, capsys) -> None:
    """What a proxy, or a website that is no registry, answers with status 200."""
    monkeypatch.setattr(Registry, "manifest", page)
    assert run(tree, monkeypatch, "gpu", "--pin") == 1
    assert "the answer is no manifest of an image" in capsys.readouterr().err
    assert not (tree / "containers" / "unlearn-gpu.base").exists()


@pytest.mark.parametrize("said", [True, False])
def test_no_password_of_a_mirror_stays_in_the_image(said: bool, tree: Path, monkeypatch, machine, capsys) -> None:
    """Apptainer keeps the definition, with the mirror's address, in every image."""
    address = "http://me:secret@two.invalid/debian"
    if not said:
        program(machine["bin"] / "apt-get", f"#!/bin/sh\necho {address}\n")
    assert run(tree, monkeypatch, "cpu", *(["--mirror", address] if said else [])) == 1
    found = capsys.readouterr()
    assert "has a user name" in found.err and "secret" not in found.err + found.out


@pytest.mark.parametrize("words", [("gpu", "--mirror", "u"), ("cpu", "--base", "i"), ("cpu", "--pin"), ("tpu",), ()])
def test_arguments_that_are_wrong(words: tuple[str, ...], tree: Path, monkeypatch, machine, capsys) -> None:
    with pytest.raises(SystemExit) as stopped:
        run(tree, monkeypatch, *words)
    assert stopped.value.code == 2
    assert "usage: containers/build" in capsys.readouterr().err


# This machine's settings


def test_pip_s_settings_as_they_read_in_the_container(tree: Path, monkeypatch, machine) -> None:
    assert run(tree, monkeypatch, "cpu") == 0
    call = recorded(machine)
    (_, *mount), *folders = call["binds"]
    assert mount == ["/mnt", "ro"]
    # Pages of an index refer to files beside it, so what is bound is the folder above.
    assert folders == [[str(machine["index"]), "/mnt/0", "ro"], [str(machine["wheels"]), "/mnt/1", "ro"]]
    assert call["mounts"] == ["0", "1", "ca-bundle.crt", "pip.conf"]
    assert call["pip"].split() == [
        "[global]",
        *("extra-index-url", "=", "file:///mnt/0/simple", "https://user:secret@wheels.invalid/simple"),
        *("find-links", "=", "/mnt/1"),
        *("timeout", "=", "60"),
        *("cert", "=", "/mnt/ca-bundle.crt"),
    ]
    # None of it is an argument: those stay readable in the image.
    assert "secret" not in " ".join(call["words"])


def test_pip_reads_those_settings(tree: Path, monkeypatch, machine, tmp_path: Path) -> None:
    assert run(tree, monkeypatch, "cpu") == 0
    config = tmp_path / "pip.conf"
    config.write_text(recorded(machine)["pip"])
    environ = {"PATH": os.environ["PATH"], "PIP_CONFIG_FILE": str(config), "HOME": str(tmp_path)}
    line = [sys.executable, "-m", "pip", "config", "list"]
    listed = subprocess.run(line, env=environ, check=True, capture_output=True, text=True).stdout
    found = dict(build.read_pip(listed))
    assert found["find-links"].split() == ["/mnt/1"] and found["cert"] == "/mnt/ca-bundle.crt"
    assert found["extra-index-url"].split()[0] == "file:///mnt/0/simple"


def test_a_single_setting_means_in_the_container_what_it_means_here(tree: Path, monkeypatch, machine, tmp_path) -> None:
    """An index, a proxy or a switch, of which pip takes all that follows the key, a line break too."""
    said = {"index-url": "https://i.invalid/simple", "no-index": "true", "proxy": "http://p.invalid:1", "retries": "0"}
    said |= {"trusted-host": "i.invalid", "default-timeout": "9"}
    monkeypatch.setattr(build, "pip_list", lambda: "".join(f"global.{key}={said[key]!r}\n" for key in said))
    for name in build.BUNDLES:
        monkeypatch.delenv(name, raising=False)
    assert run(tree, monkeypatch, "cpu") == 0
    config = tmp_path / "pip.conf"
    config.write_text(recorded(machine)["pip"])
    environ = {"PATH": os.environ["PATH"], "PIP_CONFIG_FILE": str(config), "HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-m", "pip", "config", "list"], env=environ, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert {key: value for key, value in build.read_pip(done.stdout) if key in said} == said


def test_a_machine_without_settings(tree: Path, monkeypatch, machine) -> None:
    monkeypatch.setattr(build, "pip_list", lambda: "")
    for name in build.BUNDLES:
        monkeypatch.delenv(name, raising=False)
    assert run(tree, monkeypatch, "cpu") == 0
    assert recorded(machine)["pip"] == "[global]\n" and recorded(machine)["mounts"] == ["pip.conf"]


def test_certificates_and_proxy_of_the_environment(tree: Path, monkeypatch, machine) -> None:
    monkeypatch.setattr(build, "pip_list", lambda: "")
    for name in build.BUNDLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("SSL_CERT_FILE", str(machine["bundle.crt"]))
    monkeypatch.setenv("https_proxy", "http://proxy.invalid:3128")
    assert run(tree, monkeypatch, "cpu") == 0
    lines = recorded(machine)["pip"].split()
    assert lines == ["[global]", "proxy", "=", "http://proxy.invalid:3128", "cert", "=", "/mnt/ca-bundle.crt"]


@pytest.mark.parametrize(
    ("listed", "message"),
    [("global.find-links='/no/such/folder'", "/no/such/folder"), ("global.cert='/no/ca.crt'", "/no/ca.crt")],
)
def test_settings_that_name_what_is_not_there(listed, message, tree: Path, monkeypatch, machine, capsys) -> None:
    monkeypatch.setattr(build, "pip_list", lambda: listed)
    assert run(tree, monkeypatch, "cpu") == 1
    assert message in capsys.readouterr().err
    assert not machine["apptainer.json"].exists()


# Who builds


def test_root_that_is_not_allowed_everything_is_told_so(tree: Path, monkeypatch, machine, capsys) -> None:
    monkeypatch.setattr(build.os, "geteuid", lambda: 0)
    monkeypatch.setattr(build, "all_capabilities", lambda: False)
    assert run(tree, monkeypatch, "cpu") == 1
    assert "Build as an ordinary user" in capsys.readouterr().err
    assert not machine["apptainer.json"].exists()
    monkeypatch.setattr(build, "all_capabilities", lambda: True)
    assert run(tree, monkeypatch, "cpu") == 0


@pytest.mark.parametrize(("permitted", "expected"), [("1ffffffffff", True), ("1fffeffffff", False), ("0", False)])
def test_capabilities(permitted: str, expected: bool, tmp_path: Path) -> None:
    (tmp_path / "self").mkdir()
    (tmp_path / "sys/kernel").mkdir(parents=True)
    (tmp_path / "self/status").write_text(f"Name:\tbuild\nCapInh:\t0\nCapPrm:\t000000{permitted}\n")
    (tmp_path / "sys/kernel/cap_last_cap").write_text("40\n")
    assert build.all_capabilities(tmp_path) is expected


def test_a_machine_without_apptainer(tree: Path, monkeypatch, machine, capsys) -> None:
    monkeypatch.setenv("PATH", str(tree))
    assert run(tree, monkeypatch, "gpu") == 1
    assert "no `apptainer` on PATH" in capsys.readouterr().err


def test_it_is_a_program() -> None:
    """As `make image-cpu` calls it, with the real sources."""
    done = subprocess.run([FOLDER / "build", "cpu", "--print-name"], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == build.Image("cpu", ROOT).name


# Says that it is another Python; runs no file.
OLD = """#!/bin/sh
if [ "$1" = -c ]; then exec {python} -c "import sys; sys.version_info = (3, 9, 2)
$2"; fi
echo "ran $*"
"""


@pytest.mark.slow
@pytest.mark.parametrize("target", ["image", "image-cpu", ".venv/.installed-login"])
def test_make_says_which_python_it_needs(target: str, tmp_path: Path) -> None:
    """Before a program of the project ends at what an older one lacks."""
    program(tmp_path / "python", OLD.format(python=sys.executable))
    line = ["make", "-C", str(tmp_path), "-f", str(ROOT / "Makefile"), target, f"PYTHON={tmp_path / 'python'}"]
    for name in ("pyproject.toml", "constraints-hashed.txt"):
        (tmp_path / name).touch()
    done = subprocess.run(line, capture_output=True, text=True)
    assert done.returncode and "Python 3.11 to 3.13 is needed; set PYTHON=" in done.stderr
    assert "ran" not in done.stdout.replace(target, "").split()
