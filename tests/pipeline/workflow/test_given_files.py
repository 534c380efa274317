"""A user's files: another one under the same name shows, whatever its time is."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from pipeline.config.load import load
from pipeline.config.site import Site
from pipeline.workflow import given_files, snakemake_rules
from pipeline.workflow.given_files import fingerprint
from pipeline.workflow.jobs import Job
from pipeline.workflow.plan import Plan


@pytest.fixture
def given(tmp_path: Path) -> list[Path]:
    """A file, and a link to the folder of a model."""
    (tmp_path / "model").mkdir()
    for name in ("forget.jsonl", "other.jsonl", "model/config.json", "model/model.safetensors"):
        (tmp_path / name).write_text(f"rows of {name[:5]}")
        os.utime(tmp_path / name, ns=(10**18, 10**18))
    os.utime(tmp_path / "other.jsonl", ns=(10**17, 10**17))
    shutil.copytree(tmp_path / "model", tmp_path / "model 2")
    (tmp_path / "model 2" / "config.json").write_text("rows of other")
    (tmp_path / "link").symlink_to("model")
    return [tmp_path / "forget.jsonl", tmp_path / "link"]


def moved(folder: Path) -> None:
    (folder / "other.jsonl").rename(folder / "forget.jsonl")


def copied(folder: Path) -> None:
    shutil.copy2(folder / "other.jsonl", folder / "forget.jsonl")


def linked(folder: Path) -> None:
    (folder / "link").unlink()
    (folder / "link").symlink_to("model 2")


def edited(folder: Path) -> None:
    (folder / "model" / "model.safetensors").write_text("rows of none!")


def gone(folder: Path) -> None:
    (folder / "forget.jsonl").unlink()


@pytest.mark.parametrize("change", [moved, copied, linked, edited, gone])
def test_another_file_shows(change: Callable[[Path], None], given: list[Path], tmp_path: Path) -> None:
    before = fingerprint(given)
    assert fingerprint(given) == before != fingerprint([])
    change(tmp_path)
    assert fingerprint(given) != before


def test_the_same_content_at_another_time_is_the_same(
    given: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = fingerprint(given)
    os.utime(given[0])
    shutil.copy2(given[0], tmp_path / "copy")
    (tmp_path / "copy").rename(given[0])
    assert fingerprint(given) == before
    monkeypatch.setattr(given_files, "READ", 3)  # of a large file only size and time are looked at
    large = fingerprint(given)
    shutil.copy2(given[0], tmp_path / "copy")
    (tmp_path / "copy").rename(given[0])
    assert fingerprint(given) == large
    os.utime(given[0], ns=(10**17, 10**17))
    assert fingerprint(given) != large


def test_a_job_runs_again_for_another_file_of_the_user(
    given: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its rule has a parameter for that; one that reads the results of other jobs alone keeps its own."""
    monkeypatch.setattr(snakemake_rules, "source_digest", lambda spec: "sources")
    plan = Plan(load("mini", None, None, []), tmp_path / "results")
    job = plan.jobs["data/mini"]
    rules = snakemake_rules.Rules(plan, Site(), tmp_path / "image.sif")
    source, none = rules.source("data/mini"), SimpleNamespace(items=dict)
    plan.jobs["data/mini"] = Job(job.name, job.spec, {"files": (plan.paths.root / "source" / "files",)})
    assert source(none) == "sources"
    plan.jobs["data/mini"] = Job(job.name, job.spec, {"files": tuple(given)})
    before = source(none)
    moved(tmp_path)
    assert source(none) != before != "sources"
