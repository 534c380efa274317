"""``unlearn run``: what it refuses, what a killed run leaves and how it goes on, and a line a step."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

import psutil
import pytest
from snakemake.cli import parse_config

from pipeline.__main__ import main
from pipeline.commands import run
from pipeline.config.load import CONFIGS
from pipeline.launch import lease
from pipeline.launch.lease import Holder
from pipeline.workflow import runs, snakemake_rules

ROOT = CONFIGS.parent


@pytest.fixture
def other() -> Iterator[subprocess.Popen[bytes]]:
    """Another process, which stands for another run."""
    process = subprocess.Popen(["sleep", "250"])
    yield process
    process.kill()
    process.wait()


def hold(results: Path, process: subprocess.Popen[bytes]) -> None:
    holder = replace(Holder.this(), pid=process.pid, started=psutil.Process(process.pid).create_time())
    results.mkdir(parents=True, exist_ok=True)
    (results / lease.NAME).write_text(json.dumps(asdict(holder)))


def unlearn(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pipeline", *arguments]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=250)


@pytest.mark.parametrize("name", ["2024_01", "007", "1e3", "runs #2", "True", "a: b", "~", "Läufe 😀", "results"])
def test_snakemake_reads_a_folders_name_as_it_is(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[list[str]] = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(run, "_snakemake", lambda command: called.append(command) or 0)
    assert main(["run", "mini", "--results", name, "--set", "seeds=[0, 1]", "--", "--dry-run"]) == 0
    options = called[0][called[0].index("--config") + 1 :]
    config = parse_config(options)
    assert config == {"experiment": ["mini"], "results": [name], "set": ["seeds=[0, 1]"]}
    plan, _ = snakemake_rules.read(config)
    assert plan.paths.root == Path(name) / "mini" and list(plan.config.experiment.seeds) == [0, 1]


def test_mistakes_are_said_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["run", "minni"]) == 2
    assert "did you mean 'mini'?" in capsys.readouterr().err
    assert main(["run", "mini", "--profile", "slrum"]) == 2
    assert "--profile: 'slrum'" in capsys.readouterr().err
    assert main(["run", "mini", "--results", "a$b"]) == 2
    assert "results: 'a$b' has '$'" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_options_of_snakemake_go_to_snakemake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And no lease is taken to look at a plan, which another run must not prevent."""
    called: list[list[str]] = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(run, "_snakemake", lambda command: called.append(command) or 0)
    assert (
        main(["run", "mini", "--until", "train", "--data-root", "D", "--", "--dry-run", "--forcerun", "prepare"]) == 2
    )
    assert main(["run", "mini", "--until", "train", "--", "--dry-run", "--forcerun", "prepare"]) == 0
    assert called[0][0] == "train"
    options = ['experiment=["mini"]', 'results=["results"]']
    assert called[0][-6:] == ["--dry-run", "--forcerun", "prepare", "--config", *options]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("further", "named"),
    [
        (["--config", "set=seeds=[5]"], "--config: not allowed after --: --set KEY=VALUE"),
        (["--config=image=x"], "--config=image=x: not allowed after --: --set KEY=VALUE"),
        (["-C", "results=other"], "-C: not allowed after --: --set KEY=VALUE"),
        (["-nCresults=other"], "-nCresults=other: not allowed after --: --set KEY=VALUE"),
        (["--configfile", "x.yaml"], "--configfile: not allowed after --: --set KEY=VALUE"),
        (["--profile", "slurm"], "--profile: not allowed after --: --profile belongs before --"),
    ],
)
def test_what_would_replace_its_own_options_is_refused(
    further: list[str], named: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Snakemake takes the last ``--config`` alone, and says nothing of the others."""
    monkeypatch.setattr(run, "_snakemake", lambda _: pytest.fail("was started"))
    assert main(["run", "mini", "--", "--dry-run", *further]) == 2
    assert named in capsys.readouterr().err


@pytest.mark.parametrize(
    ("files", "cluster"),
    [
        ({"config.yaml": "executor: slurm\njobs: 2\n"}, True),
        ({"config.yaml": "executor: local\ncores: 2\n"}, False),
        ({"config.yaml": "cores: 2\n"}, False),
        ({"config.yaml": "cores: 2\n", "config.v8+.yaml": "executor: slurm\njobs: 2\n"}, True),
        ({"config.yaml": "cores: 2\n", "config.v99+.yaml": "executor: slurm\njobs: 2\n"}, False),
    ],
)
def test_a_cluster_is_known_by_the_profiles_executor(
    files: dict[str, str], cluster: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever its folder is called."""
    asked: list[bool] = []
    folder = tmp_path / "our-cluster"
    folder.mkdir()
    for name, text in files.items():
        (folder / name).write_text(text)
    planned = run.planned
    monkeypatch.setattr(run, "planned", lambda given, on: asked.append(on) or planned(given, False))
    monkeypatch.setattr(run, "_snakemake", lambda _: 0)
    assert main(["run", "mini", "--profile", str(folder), "--", "--dry-run"]) == 0
    assert asked == [cluster]


@pytest.mark.parametrize("text", ["executor: [", "- executor", "", "\x80"])
def test_a_profile_that_is_none_is_refused(text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "config.yaml").write_bytes(text.encode("latin-1"))
    assert main(["run", "mini", "--profile", str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert f"--profile: {tmp_path / 'config.yaml'}: no profile of Snakemake: " in said and len(said.splitlines()) == 1


@pytest.mark.slow
def test_a_reader_that_has_enough_gets_no_traceback(tmp_path: Path) -> None:
    """Only this closes the pipe that the output goes to, as ``unlearn validate mini | head -1`` does."""
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-m", "pipeline", "validate", "mini"]
    done = subprocess.run(
        command, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=write, stderr=subprocess.PIPE
    )
    os.close(write)
    assert (done.returncode, done.stderr) == (141, b"")


@pytest.mark.parametrize("command", [[], *([name] for name in ("run", "validate", "evaluate", "metrics"))])
def test_help_has_examples(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main([*command, "--help"])
    printed = capsys.readouterr().out
    assert stopped.value.code == 0
    assert not command or f"unlearn {command[0]} " in printed.partition("examples:")[2]


def test_steps_that_do_not_end_are_named_and_nothing_is_started(
    tmp_path: Path, other: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    hold(tmp_path / "results" / "mini", other)
    other.kill()
    other.wait()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(runs, "ENDING", 0.0)
    monkeypatch.setattr(lease, "left_behind", lambda _: [4711])
    monkeypatch.setattr(run, "_snakemake", lambda _: pytest.fail("was started"))
    assert main(["run", "mini"]) == 2
    assert "process 4711" in capsys.readouterr().err
    assert not (tmp_path / "results" / "mini" / lease.NAME).exists()


@pytest.mark.slow
def test_it_goes_on_after_a_kill_and_never_beside_another_run(tmp_path: Path, other: subprocess.Popen[bytes]) -> None:
    """Snakemake's own lock, which stays when it is killed, says nothing."""
    results, locks = tmp_path / "results" / "mini", tmp_path / ".snakemake" / "locks"
    hold(results, other)
    locks.mkdir(parents=True)
    (locks / "0.output.lock").write_text("results/mini/data/mini/manifest.json\n")

    done = unlearn(tmp_path, "run", "mini", "--until", "data")
    assert done.returncode == 2, done.stderr
    assert f"process {other.pid} on {Holder.this().host}" in done.stderr
    other.kill()
    other.wait()
    done = unlearn(tmp_path, "run", "mini", "--until", "data")
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"process {other.pid} on" in done.stderr
    assert re.search(r"^1/1  data: Mini TOFU, forget10 +\d+ s$", done.stderr, re.MULTILINE)
    assert (results / "data" / "mini" / "manifest.json").is_file()
    assert not (results / lease.NAME).exists()

    again = unlearn(tmp_path, "run", "mini", "--until", "data")
    assert (again.returncode, "nothing to do" in again.stderr) == (0, True)
