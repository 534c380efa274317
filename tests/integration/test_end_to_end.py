"""The whole workflow: from nothing to a report. On several ranks it is ``tests/cluster``'s.

What runs again after a change is ``tests/pipeline/workflow/test_snakemake_rules.py``'s, and the cluster's for real.
"""

from __future__ import annotations

import csv
import json
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import yaml

from tests.support import programs

ROOT = Path(__file__).parents[2]
BENCHMARK = """
name: tiny
title: Tiny TOFU
family: tofu
source: {kind: synthetic, authors: 10, questions_per_author: 4, background_authors: 0, seed: 1}
splits: {forget10: 4}
"""
EXPERIMENT = """
name: tiny
title: A cut-down mini
benchmark: tiny
split: forget10
model: mini-llama
runtime: {device: cpu, timeout_seconds: 120}
data: {max_length: 128}
training:
  target: &training
    data: {full: 0.5, general: 0.5}
    steps: 12
    global_batch: 8
    checkpoint_every: 5
    optimizer: {learning_rate: 3e-3, clip_norm: 1.0}
  retrain:
    <<: *training
    data: {retain: 0.5, general: 0.5}
methods:
  - {method: blur-npo, overrides: {rule: {gamma: 0.5}}}
evaluate_every: {epochs: 2}
unlearning: {epochs: 3, global_batch: 4, warmup_epochs: 0, optimizer: {learning_rate: 1e-4}}
evaluation: {options: {max_new_tokens: 8}}
"""


def run(folder: Path, *arguments: str) -> tuple[set[str], str]:
    """The messages of the jobs that were run, and all that was printed."""
    options = [f"experiment={folder / 'experiments' / 'tiny.yaml'}", f"results={folder / 'results'}"]
    given = ["--profile", "workflow_configs/profiles/local", *arguments, "--directory", str(folder)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = programs.snakemake(ROOT, *given, "--config", *options, environment=environment, timeout=280)
    printed = done.stdout + done.stderr
    assert done.returncode == 0, printed
    return set(re.findall(r"^Job \d+: (.*)$", printed, re.MULTILINE)), printed


@pytest.mark.slow
def test_from_nothing_to_a_report(tmp_path: Path) -> None:
    (tmp_path / "experiments").mkdir()
    (tmp_path / "benchmarks").mkdir()
    (tmp_path / "benchmarks" / "tiny.yaml").write_text(BENCHMARK)
    (tmp_path / "experiments" / "tiny.yaml").write_text(EXPERIMENT)

    jobs, printed = run(tmp_path, "all")

    assert len(jobs) == 10
    root = tmp_path / "results" / "tiny"
    with (root / "report" / "table.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {row["method"] for row in rows} == {"target", "retrain", "blur-npo"}
    quality = {row["method"]: float(row["value"]) for row in rows if row["metric"] == "forget_quality"}
    assert quality["retrain"] == 1.0
    assert "Model" in printed and "report: " in printed, "the table is printed at the end"
    page = (root / "report" / "index.html").read_text()
    assert all(title in page for title in ("Target", "Retrain", "BLUR-NPO", "<svg"))
    blur = root / "unlearned" / "blur-npo" / "seed-0"
    steps = [json.loads(line) for line in (blur / "steps.jsonl").read_text().splitlines()]
    assert [step["forget_alignment"] for step in steps] == pytest.approx([0.5] * 3)
    provenance = json.loads((blur / "provenance.json").read_text())
    assert provenance["spec"]["rule"] == {"name": "blur", "gamma": 0.5}

    # Steps are forked from a process with their libraries loaded, and come to the same in one of their own.
    target, alone = root / "models" / "target", tmp_path / "alone"
    assert "forked from" in (root / "logs" / "models" / "target.log").read_text()
    alone.mkdir()
    spec = yaml.safe_load((target / "spec.yaml").read_text())
    (alone / "spec.yaml").write_text(yaml.safe_dump({**spec, "output": str(alone)}))
    launch = [sys.executable, "-m", "pipeline.launch", alone / "spec.yaml"]
    launched = subprocess.run(launch, cwd=ROOT, capture_output=True, text=True, timeout=100)
    assert launched.returncode == 0 and "forked from" not in launched.stdout, launched
    weights = [folder / "checkpoint" / "model.safetensors" for folder in (target, alone)]
    assert weights[0].read_bytes() == weights[1].read_bytes()

    # The notebook of examples/ reads the run.
    shown = subprocess.run(
        [sys.executable, "-m", "tests.support.notebook", ROOT / "examples" / "read_a_run.ipynb"],
        env={**os.environ, "RESULTS": str(root), "MPLBACKEND": "agg", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert shown.returncode == 0 and "blur-npo-seed-0" in shown.stdout and "forget_quality" in shown.stdout, shown

    # Snakemake's own report has the table and every figure, each with its caption.
    run(tmp_path, "--report", str(tmp_path / "report.zip"))
    with zipfile.ZipFile(tmp_path / "report.zip") as archive:
        names = [Path(name).name for name in archive.namelist()]
        report = archive.read("report/report.html").decode()
    figures = {path.name for path in (root / "report" / "figures").glob("*.svg")}
    assert figures and figures | {"index.html", "table.csv"} <= set(names)
    assert "Every metric of every model and seed" in report
    assert report.count("alignments of BLUR") == sum(name.endswith("-npo-alignment.svg") for name in figures) > 0

    assert run(tmp_path, "all", "--dry-run")[0] == set(), "nothing is left to do"
