"""An image that is not whole, or not of this checkout, by the record beside it."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.config.site import Site
from pipeline.launch.image import image_sha256
from pipeline.workflow import image_checks, snakemake_rules


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """A small image with its record, as if built from this checkout."""
    file = tmp_path / "unlearn-cpu-x.sif"
    file.write_bytes(b"squashfs" * 1000)
    asked = [sys.executable, image_checks.BUILD, "cpu", "--print-name"]
    name = subprocess.run(asked, check=True, capture_output=True, text=True).stdout.strip()
    content = name.removeprefix("unlearn-cpu-").removesuffix(".sif")
    record = {"kind": "cpu", "content": content, "bytes": 8000, "base": "debian:bookworm"}
    record["sha256"] = hashlib.sha256(file.read_bytes()).hexdigest()
    file.with_suffix(".json").write_text(json.dumps(record))
    return file


def change(image: Path, **values: object) -> None:
    record = image.with_suffix(".json")
    record.write_text(json.dumps(json.loads(record.read_text()) | values))


def test_an_image_that_is_whole_is_read_once(image: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its digest takes a minute for 10 GB from a file server."""
    snakemake_rules.require_image(image, Site(require_current_image=True))
    assert capsys.readouterr().err == "" and image.with_suffix(".checked").is_file()
    times = image.stat()
    image.write_bytes(b"squashfS" * 1000)
    os.utime(image, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert image_checks.damage(image) is None, "not read: neither size nor time has changed"
    os.utime(image)
    assert "is damaged: SHA-256" in (image_checks.damage(image) or "")


@pytest.mark.parametrize("left", [0, 7999])
def test_a_truncated_image_starts_nothing(left: int, image: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """On a cluster, three attempts of each job would fail without a word of why."""
    os.truncate(image, left)
    with pytest.raises(SystemExit, match="2"):
        snakemake_rules.require_image(image, Site())
    assert f"image: {str(image)!r} has {left} bytes and not 8000" in capsys.readouterr().err


def test_an_image_of_another_checkout_is_named_and_refused_where_the_site_says_so(
    image: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    change(image, content="0" * 64)
    snakemake_rules.require_image(image, Site())
    said = capsys.readouterr().err
    assert "unlearn-cpu-x.sif is not of this checkout" in said and "`make image-cpu`" in said
    with pytest.raises(SystemExit, match="2"):
        snakemake_rules.require_image(image, Site(require_current_image=True))
    assert "require_current_image: true" in capsys.readouterr().err


def test_an_image_from_elsewhere_is_taken_as_it_is_and_a_folder_is_not(
    image: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image.with_suffix(".json").unlink()
    assert image_checks.damage(image) is None and image_checks.older(image) is None
    with pytest.raises(SystemExit, match="2"):
        snakemake_rules.require_image(image.parent, Site())
    assert "is no file" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["", "{}", "[1]", '{"bytes": 8000, "sha', '{"bytes": 8000}'])
def test_a_record_that_is_not_whole_is_named(text: str, image: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As where a copy of both ended early; a plan, which needs no image, is made all the same."""
    image.with_suffix(".json").write_text(text)
    assert image_sha256(image) is None
    with pytest.raises(SystemExit, match="2"):
        snakemake_rules.require_image(image, Site())
    assert f"{str(image.with_suffix('.json'))!r} cannot be read as the record" in capsys.readouterr().err


DEFAULT = "nvcr.io/nvidia/pytorch"


@pytest.mark.parametrize(
    ("base", "given", "asked"),
    [
        (f"{DEFAULT}:25.12-py3", False, []),
        (f"{DEFAULT}@sha256:{'a' * 64}", False, []),
        (f"{DEFAULT}@sha256:{'a' * 64}", None, []),  # written before ``base_given`` was
        (f"{DEFAULT}:25.11-py3", None, []),
        (f"{DEFAULT}:25.11-py3", True, ["--base", f"{DEFAULT}:25.11-py3"]),
        ("registry.invalid:5000/pytorch:25.12-py3", None, ["--base", "registry.invalid:5000/pytorch:25.12-py3"]),
        ("registry.invalid/pytorch", True, ["--base", "registry.invalid/pytorch"]),
    ],
)
def test_an_image_of_another_pinned_base_is_older(
    base: str, given: bool | None, asked: list[str], image: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A base goes over the checkout's pin only where somebody chose it when the image was built."""
    change(image, kind="gpu", base=base, **({} if given is None else {"base_given": given}))
    seen: list[list[str]] = []

    def run(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        seen.append(command[2:])
        return subprocess.CompletedProcess(command, 0, "unlearn-gpu-other.sif\n", "")

    monkeypatch.setattr(image_checks.subprocess, "run", run)
    assert "would make unlearn-gpu-other.sif (`make image`)" in (image_checks.older(image) or "")
    assert seen == [["gpu", "--print-name", *asked]]
