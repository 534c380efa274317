"""``snakemake --profile slurm`` by an ordinary user on two nodes, steps in containers: to the report, and every way not
to get there. The tests go on from one another's results, each from a finished experiment to a finished one."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import time
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.cluster.clone import Clone, Outcome, Rank, copy, json_lines, ranks, slurm_jobs, wait_for

pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.timeout(1800)]

BENCHMARK = """
name: tiny
title: Tiny TOFU
family: tofu
source: {kind: synthetic, authors: 10, questions_per_author: 4, background_authors: 0, seed: 1}
splits: {forget10: 4}
"""
EXPERIMENT = """
name: tiny
title: A cut-down mini on two nodes
benchmark: tiny
split: forget10
model: mini-llama
layout: 4
runtime: {timeout_seconds: 120} # device: auto asks for GPUs and, as these are only names, runs on CPUs
data: {max_length: 128}
training:
  target:
    data: {full: 0.5, general: 0.5}
    steps: 30
    global_batch: 16
    optimizer: {learning_rate: 3e-3, clip_norm: 1.0}
methods:
  - {method: npo, overrides: {training: {epochs: 60, checkpoint_every: 2}}}
  - {method: blur-npo, overrides: {rule: {gamma: 0.5}}}
unlearning: {epochs: 3, global_batch: 4, warmup_epochs: 0, optimizer: {learning_rate: 1e-4}}
evaluation: {options: {max_new_tokens: 8}}
"""
# As above, with a training that is long enough to be stopped in its middle.
LONG = """
name: long
title: A training that takes minutes
benchmark: tiny
split: forget10
model: mini-llama
runtime: {device: cpu}
data: {max_length: 128}
training:
  target:
    data: {full: 0.5, general: 0.5}
    steps: 10000
    global_batch: 16
    checkpoint_every: 5000
    optimizer: {learning_rate: 1e-3, clip_norm: 1.0}
methods: [npo]
"""
SITE = {"partition": "main", "gpus_per_node": 2, "cpus_per_node": 4, "memory_per_node_mb": 64000, "warn_seconds": 60}
TIMING = ("seconds", "peak_memory_bytes")


@pytest.fixture(scope="module")
def experiments(clone: Clone, image: Path) -> Path:
    """The folder of the experiments' files; ``site.yaml`` names partition and image."""
    clone.site(**SITE, image=str(image))
    files = {"benchmarks/tiny.yaml": BENCHMARK, "experiments/tiny.yaml": EXPERIMENT, "experiments/long.yaml": LONG}
    for name, text in files.items():
        clone.write(clone.folder.parent / "own" / name, yaml.safe_load(text))
    return clone.folder.parent / "own" / "experiments"


@pytest.fixture(scope="module")
def tiny(experiments: Path) -> Path:
    return experiments / "tiny.yaml"


@pytest.fixture(scope="module")
def results(clone: Clone) -> Path:
    return clone.folder / "results" / "tiny"


@dataclass(frozen=True)
class Finished:
    """A run from nothing to the report, and which ranks of which jobs were seen at the same time meanwhile."""

    outcome: Outcome
    seen: list[dict[str, list[Rank]]]


@pytest.fixture(scope="module")
def finished(clone: Clone, tiny: Path) -> Finished:
    seen = []
    with clone.running("all", experiment=tiny) as process:
        while process.poll() is None:
            seen.append({job: ranks(job) for job in slurm_jobs("RUNNING")})
            time.sleep(1)
    assert process.outcome.status == 0, process.outcome.printed
    return Finished(process.outcome, seen)


def test_ranks_are_on_both_nodes_and_jobs_share_no_gpu(finished: Finished) -> None:
    whole = [job for jobs in finished.seen for job in jobs.values() if len(job) == 4]
    assert whole
    for job in whole:
        assert [rank.number for rank in job] == [0, 1, 2, 3]
        assert [rank.node for rank in job] == ["n1", "n1", "n2", "n2"]
        for first, second in (job[:2], job[2:]):
            assert first.gpus == second.gpus and len(first.gpus.split(",")) == 2, (
                "a rank sees its node's, and takes one"
            )
    pairs = [pair for jobs in finished.seen for pair in combinations(filter(None, jobs.values()), 2)]
    assert pairs, "two jobs ran at the same time"
    for one, other in pairs:
        assert {(rank.node, gpu) for rank in one for gpu in rank.gpus.split(",")}.isdisjoint(
            (rank.node, gpu) for rank in other for gpu in rank.gpus.split(",")
        )


def test_from_nothing_to_the_report(finished: Finished, results: Path, image: Path) -> None:
    assert (results / "report/index.html").exists()
    assert "BLUR-NPO" in finished.outcome.printed, "the table is printed at the end"
    digest = json.loads(image.resolve().with_suffix(".json").read_text())["sha256"]
    for step in ("data/tiny", "models/target", "unlearned/npo/seed-0", "evaluation/target/tiny", "report"):
        provenance = json.loads((results / step / "provenance.json").read_text())
        assert provenance["image"]["sha256"] == digest, f"{step} ran in the image"
        assert provenance["git"] is not None and not provenance["git"]["dirty"]
    unlearned = json.loads((results / "unlearned/npo/seed-0/provenance.json").read_text())
    assert unlearned["layout"]["pipeline"] == 2 and unlearned["slurm"]["nodes"] == "n[1-2]"
    for method, steps in (("npo", 60), ("blur-npo", 3)):
        assert len(json_lines(results / "unlearned" / method / "seed-0/steps.jsonl")) == steps


def test_another_gamma_reruns_its_branch_only(finished: Finished, clone: Clone, tiny: Path, results: Path) -> None:
    values = yaml.safe_load(tiny.read_text())
    values["methods"][1]["overrides"]["rule"]["gamma"] = 0.1
    clone.write(tiny, values)

    done = clone.snakemake("all", experiment=tiny)

    assert done.status == 0, done.printed
    assert done.jobs == {
        "unlearn: blur-npo, seed 0",
        "evaluate: blur-npo-seed-0, tiny",
        "report: results/tiny/report/index.html",
    }
    steps = json_lines(results / "unlearned/blur-npo/seed-0/steps.jsonl")
    assert [step["forget_alignment"] for step in steps] == pytest.approx([0.1] * 3)
    again = clone.snakemake("all", experiment=tiny)
    assert again.status == 0 and again.jobs == set()


def test_moved_results_rerun_only_the_report(finished: Finished, clone: Clone, tiny: Path, results: Path) -> None:
    other = copy(clone.folder.parent / "other", clone.user)
    for name in (".venv", "site.yaml"):
        (other.folder / name).symlink_to(clone.folder / name)
    clone.user.must("cp", "-r", results.parent, other.folder / "results", cwd=other.folder)

    touched = other.snakemake("all", "--touch", experiment=tiny)
    done = other.snakemake("all", "--forcerun", "write_report", experiment=tiny)

    assert touched.status == 0, touched.printed
    assert done.status == 0, done.printed
    assert done.jobs == {"report: results/tiny/report/index.html"}
    assert (other.folder / "results/tiny/report/table.csv").read_bytes() == (results / "report/table.csv").read_bytes()


def test_a_rank_dies_then_the_job_is_cancelled_then_it_ends_with_the_same_bits(
    finished: Finished, clone: Clone, tiny: Path, results: Path
) -> None:
    run = results / "unlearned/npo/seed-0"
    expected = fingerprint(run)
    shutil.rmtree(run)
    target = str((run / "checkpoint").relative_to(clone.folder))

    with clone.running(target, "--retries", "0", experiment=tiny) as process:
        job, processes = unlearning(run)
        for rank in processes[:3]:
            os.kill(
                rank.pid, signal.SIGSTOP
            )  # or one of them might fail, for want of the killed one, and end before it
        os.kill(processes[3].pid, signal.SIGKILL)
        wait_for("the end of the job, before its time-out", lambda: job not in slurm_jobs("RUNNING", "COMPLETING"), 90)
        process.wait()
    died = process.outcome
    assert died.status == 1
    log = results / "logs/unlearned/npo/seed-0.log"
    assert str(log.relative_to(clone.folder)) in died.printed
    assert "Killed" in died.printed and "n2" in died.printed, "what explains the failure is shown"
    first = states(run)
    assert 0 < first < 60

    with clone.running(target, "--retries", "0", experiment=tiny) as process:
        job, _ = unlearning(run, after=first)
        subprocess.run(["scancel", job], check=True, timeout=30)
        process.wait()
    cancelled = process.outcome
    assert cancelled.status == 1 and "CANCELLED" in cancelled.printed
    wait_for("the end of the job", lambda: job not in slurm_jobs("RUNNING", "COMPLETING"), 60)
    second = states(run)
    assert first < second < 60

    done = clone.snakemake(target, experiment=tiny)
    assert done.status == 0, done.printed
    attempts = sorted((results / "logs/unlearned/npo/attempts").glob("seed-0.*.log"))
    assert len(attempts) == 4, "with that of the uninterrupted run"
    texts = [path.read_text() for path in attempts]
    assert f"going on after step {first}" in texts[2] and f"going on after step {second}" in texts[3]
    assert fingerprint(run) == expected
    assert not (run / "resume").exists()


def test_what_succeeded_is_reported_where_a_job_failed_and_later_the_whole(
    finished: Finished, clone: Clone, tiny: Path, results: Path
) -> None:
    """Only this has a report on a cluster that lacks a row, with Slurm's reason for it."""
    for folder in ("unlearned/npo", "evaluation/npo-seed-0", "report"):
        shutil.rmtree(results / folder)
    short = ("--retries", "0", "--set-resources", "unlearn_target:mem_mb=200")
    partial = results / "report-partial"

    failed = clone.snakemake("all", *short, experiment=tiny)

    assert failed.status == 1, failed.printed
    assert str((partial / "index.html").relative_to(clone.folder)) in failed.printed
    reasons = {
        row["model_id"]: "\n".join(row["lines"])
        for row in yaml.safe_load((partial / "spec.yaml").read_text())["failed"]
    }
    assert reasons.keys() == {"npo-seed-0"} and "exceeded memory limit" in reasons["npo-seed-0"], reasons
    assert "exceeded memory limit" in (partial / "index.html").read_text()
    with (partial / "table.csv").open() as file:
        assert {row["method"] for row in csv.DictReader(file)} == {"target", "blur-npo"}

    done = clone.snakemake("all", experiment=tiny)
    assert done.status == 0, done.printed
    assert not partial.exists() and (results / "report/index.html").exists()


def test_a_wrong_partition_is_named(clone: Clone, experiments: Path, image: Path) -> None:
    before = slurm_jobs()
    clone.site(**{**SITE, "partition": "nonesuch"}, image=str(image))
    try:
        done = clone.snakemake("data", "--forcerun", "prepare", experiment=experiments / "tiny.yaml")
    finally:
        clone.site(**SITE, image=str(image))
    assert done.status != 0
    assert "site.yaml: partition: Slurm has no 'nonesuch'; allowed: main" in done.printed
    assert slurm_jobs().keys() <= before.keys(), "nothing was submitted; Slurm forgets old jobs meanwhile"


def test_limits_of_memory_and_time(clone: Clone, experiments: Path) -> None:
    target = "results/long/models/target/checkpoint"
    long = experiments / "long.yaml"

    done = clone.snakemake(target, "--retries", "0", "--set-resources", "train_model:mem_mb=200", experiment=long)
    assert done.status == 1
    assert "exceeded memory limit" in done.printed
    # The step's own log is named only where the kill left it time to write there; Slurm's always is.
    named = re.findall(r"\S*results/long/logs/\S+\.log", re.findall(r"^  log: (.*)$", done.printed, re.MULTILINE)[-1])
    assert any("exceeded memory limit" in (clone.folder / log).read_text() for log in named), done.printed

    attempts = clone.folder / "results/long/logs/models/attempts"
    killed = len(list(attempts.glob("target.*.log")))  # 1, or 0 where the kill left no time to write there
    # Three minutes: Slurm warns half a minute early, and what is only starting does not hear it.
    with clone.running(
        target, "--retries", "1", "--set-resources", "train_model:runtime=3", experiment=long
    ) as process:
        first, again = (attempts / f"target.{killed + number}.log" for number in (1, 2))
        wait_for("the second attempt to go on", lambda: again.exists() and "going on" in again.read_text(), 400)
        process.interrupt()
    assert process.outcome.status == 1
    stopped = re.search(r"asked to stop: the state after step (\d+) of", first.read_text())
    assert stopped, "the warning came, and was obeyed"
    assert f"going on after step {stopped[1]}\n" in again.read_text()
    assert "results/long/logs/models/target.log" in process.outcome.printed
    wait_for("the last job's end", lambda: not slurm_jobs("RUNNING", "PENDING", "COMPLETING"), 90)


def unlearning(run: Path, after: int = 0) -> tuple[str, list[Rank]]:
    """The job that unlearns, and its ranks, as soon as it has written a state after step ``after``."""
    wait_for("a state", lambda: states(run) > after, 240)
    (job,) = [number for number, what in slurm_jobs("RUNNING").items() if what.startswith("rule_unlearn_target")]
    return job, ranks(job)


def states(run: Path) -> int:
    """The step of the newest resume state; 0 where there is none."""
    return max((int(path.name.removeprefix("step-")) for path in run.glob("resume/step-*")), default=0)


def fingerprint(run: Path) -> tuple[dict[str, str], list[dict[str, Any]]]:
    """Digests of the files that the step wrote, and the step log without its timings.

    The model card in the checkpoint's folder is the report's, which writes it later.
    """
    files = sorted(path for path in (run / "checkpoint").rglob("*") if path.is_file() and path.name != "README.md")
    digests = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
    return digests, json_lines(run / "steps.jsonl", *TIMING)
