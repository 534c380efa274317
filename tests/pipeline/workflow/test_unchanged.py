"""Nothing that Snakemake would look at can change without it being asked again; what it does not look at can."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.__main__ import main
from pipeline.commands import run
from pipeline.config.load import load
from pipeline.config.site import Site
from pipeline.workflow import unchanged
from pipeline.workflow.plan import Plan
from pipeline.workflow.unchanged import State

OUTPUT = "results/mini/unlearned/npo/seed-0/summary.json"
FOLDER = "results/mini/unlearned/npo/seed-0/checkpoint"
ASKED = ["all", "--profile", "local", "cores: all"]


@pytest.fixture(scope="module")
def config():
    return load("mini", None, None, [])


@pytest.fixture
def plan(config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Plan:
    """The experiment in a folder where some of its files are, and where one of its inputs lies outside."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(unchanged, "source_digest", lambda spec: "the same")  # the real one takes a second
    for name in (OUTPUT, f"{FOLDER}/model.safetensors", f"{FOLDER}/.snakemake_timestamp", "mine.jsonl"):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_text("content")
        os.utime(name, ns=(10**18, 10**18))
    return planned(config)


def planned(config) -> Plan:
    plan = Plan(config, Path("results"))
    job = plan.jobs["data/mini"]
    plan.jobs["data/mini"] = type(job)(job.name, job.spec, {"files": (Path("mine.jsonl"),)})
    return plan


def touch(name: str) -> None:
    os.utime(name, ns=(10**18 + 1, 10**18 + 1))


def edited() -> None:
    """With the same size and the same time."""
    Path("mine.jsonl").write_text("another")
    os.utime("mine.jsonl", ns=(10**18, 10**18))


def linked() -> None:
    Path("elsewhere").mkdir()
    Path("results/mini/models").symlink_to(Path("elsewhere").absolute())


def cut_short() -> None:
    """Snakemake's note of a long name is a folder and a file in it."""
    marker = Path(".snakemake/incomplete/@abc/def")
    marker.parent.mkdir(parents=True)
    marker.touch()


@pytest.mark.parametrize(
    "change",
    [
        lambda: touch(OUTPUT),
        lambda: touch(f"{FOLDER}/.snakemake_timestamp"),
        lambda: touch(FOLDER),
        lambda: touch("mine.jsonl"),
        lambda: Path("mine.jsonl").unlink(),
        edited,
        lambda: Path(OUTPUT).unlink(),
        lambda: Path(FOLDER, "model.safetensors").unlink(),
        lambda: Path(FOLDER).rename("elsewhere"),
        lambda: Path("results/mini/unlearned/npo/seed-0/steps.jsonl").touch(),
        lambda: Path("results/mini/models").mkdir(),
        linked,
        cut_short,
    ],
)
def test_a_changed_file_is_shown_to_snakemake(change: Callable[[], object], plan: Plan) -> None:
    State(plan, Site(), ASKED).keep()
    assert State(plan, Site(), ASKED).is_known()
    change()
    assert not State(plan, Site(), ASKED).is_known()


def test_a_cut_short_job_or_a_linked_folder_is_never_remembered(plan: Plan) -> None:
    for change in (linked, cut_short):
        change()
        State(plan, Site(), ASKED).keep()
        assert not State(plan, Site(), ASKED).is_known()


def test_what_no_job_reads_may_change(plan: Plan) -> None:
    State(plan, Site(), ASKED).keep()
    for name in (".running.json", ".report.0123456789abcdef", "logs/step.log"):
        file = Path("results/mini", name)
        file.parent.mkdir(exist_ok=True)
        file.write_text("anything")
    assert State(plan, Site(), ASKED).is_known()
    (plan.paths.root / unchanged.NAME).write_bytes(b"\xff")
    assert not State(plan, Site(), ASKED).is_known(), "a damaged record"


def test_a_changed_specification_source_rule_image_site_or_command_is_shown(
    config, plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    State(plan, Site(), ASKED).keep()
    known = State(plan, Site(), ASKED).digest
    others = [State(planned(load("mini", None, None, ["methods.npo.rule.forget_weight=0.5"])), Site(), ASKED)]
    others.append(State(plan, Site(image=tmp_path / "another.sif"), ASKED))
    others.append(State(plan, Site(partition="another"), ASKED))
    others += [State(plan, Site(), asked) for asked in (["train", *ASKED[1:]], [*ASKED[:-1], "cores: 1"])]
    with monkeypatch.context() as changed:
        changed.setattr(unchanged, "source_digest", lambda _: "another")
        others.append(State(plan, Site(), ASKED))
    with monkeypatch.context() as changed:
        changed.setattr(unchanged, "version", lambda _: "10.0")
        others.append(State(plan, Site(), ASKED))
    rules = tmp_path / "clone" / "pipeline" / "workflow"
    rules.mkdir(parents=True)
    monkeypatch.setattr(unchanged, "ROOT", tmp_path / "clone")
    for file in (tmp_path / "clone" / "Snakefile", rules / "a.smk"):
        file.write_text("rule a:")
        others.append(State(plan, Site(), ASKED))
    assert len({known, *(other.digest for other in others)}) == len(others) + 1
    assert not any(other.is_known() for other in others)


def test_snakemake_is_asked_once_about_the_same(
    plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """And again when it had something to do, failed, got an option of its own, or a file changed while it looked."""
    asked: list[str] = []
    does: list[Callable[[], object]] = []

    def snakemake(command: list[str]) -> int:
        asked.append(command[2])
        for do in does:
            do()
        return 0

    monkeypatch.setattr(run, "_snakemake", snakemake)
    monkeypatch.setattr(run, "planned", lambda *given: (plan, None))
    file = tmp_path / "results" / "mini" / "data" / "file"

    def write() -> None:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("x" * len(asked))

    does.append(write)
    assert main(["run", "mini"]) == 0
    does.clear()
    assert main(["run", "mini"]) == 0 and len(asked) == 2, "what changed meanwhile was taken for seen"
    assert "nothing to do" in capsys.readouterr().err
    assert main(["run", "mini"]) == 0 and len(asked) == 2
    assert "nothing to do" in capsys.readouterr().err
    assert main(["run", "mini", "--", "--forcerun", "prepare"]) == 0 and len(asked) == 3
    file.unlink()
    assert main(["run", "mini"]) == 0 and len(asked) == 4
    assert not (tmp_path / "results" / "mini" / ".running.json").exists()
