"""``constraints-hashed.txt`` is of ``constraints.txt``, each part holds what it needs, and no file lacks its hash."""

from __future__ import annotations

import importlib.metadata
import re
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from tests.containers.scripts import load
from tests.support import hashes

packages = load("packages")


def test_every_pinned_package_has_its_hashes() -> None:
    hashes.main([])
    text = hashes.HASHED.read_text(encoding="utf-8")
    entries = packages.packages(text, "trackers")
    assert list(entries) and set(entries) == set(hashes.pins(hashes.PINNED))
    entry = re.compile(r"[\w.-]+==[\w.+]+( ; .*)?( \\\n    --hash=sha256:[0-9a-f]{64})+\n")
    assert [one for one in entries.values() if not entry.fullmatch(one)] == []
    assert [line for line in text.splitlines() if "//" in line] == [], "an address"


def test_another_version_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a pin could change and what is verified would be the old one."""
    changed = tmp_path / "constraints.txt"
    changed.write_text(hashes.PINNED.read_text(encoding="utf-8").replace("torch==", "torch==9"), encoding="utf-8")
    monkeypatch.setattr(hashes, "PINNED", changed)
    with pytest.raises(SystemExit, match=r"not of constraints\.txt"):
        hashes.main([])


@pytest.mark.parametrize("part", hashes.PARTS)
def test_a_part_holds_what_its_packages_need(part: str) -> None:
    """``--no-deps`` installs them, so that nothing would say what lacks. Looked at is what is installed here."""
    entries = packages.packages(hashes.HASHED.read_text(encoding="utf-8"), part)
    assert hashes.BUILDS in entries and ("torch" in entries) == (part != "core")
    waiting = [("megatron-unlearning", extra) for extra in ("", *hashes.PARTS[part])]
    seen: set[tuple[str, str]] = set()
    while waiting:
        name, extra = one = waiting.pop()
        try:
            needs = [Requirement(text) for text in importlib.metadata.requires(name) or []]
        except importlib.metadata.PackageNotFoundError:
            continue
        seen.add(one)
        for need in needs:
            if need.marker is None or need.marker.evaluate({"extra": extra}):
                other = hashes.normalise(need.name)
                assert other in entries or other.startswith(("nvidia-", "cuda-", "triton")), (one, other)
                waiting += [pair for pair in [(other, ""), *((other, e) for e in need.extras)] if pair not in seen]
    assert len(seen) > 20


def test_torch_says_where_its_hashes_are_of_a_build() -> None:
    """Else a build for another Python would be taken for one that was exchanged."""
    builds = ("cp311-cp311-manylinux_2_28_x86_64", "cp313-cp313-manylinux_2_28_aarch64")
    names = [f"torch-2.13.0+cpu-{build}.whl" for build in builds]
    assert packages.MARKER.findall(hashes.marker(names)) == [("3.11", "x86_64"), ("3.13", "aarch64")]
    entry = packages.packages(hashes.HASHED.read_text(encoding="utf-8"), "steps")["torch"]
    assert len(packages.MARKER.findall(entry)) == entry.count("--hash=") > 0
    assert Requirement(entry.partition(" \\\n")[0]).marker.evaluate({"python_version": "3.9"}) is False


def test_no_such_part() -> None:
    assert packages.packages("# part: core\na==1 \\\n    --hash=sha256:0\n", "cor") is None
    assert list(packages.packages("# part: core\nA_b==1 \\\n    --hash=sha256:0\n", "core")) == ["a-b"]
