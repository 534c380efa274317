"""``unlearn init``: an experiment for one's own model and files, which is right as it is written."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipeline.__main__ import main
from pipeline.commands import init, show_row
from pipeline.config.load import load
from pipeline.config.located_yaml import ConfigError
from pipeline.data.general_prompts import PROMPTS as PROMPTS_OF_OURS
from pipeline.data.settings import FilesSource
from pipeline.workflow.plan import Plan
from tests.support.checkpoints import CONFIG, write_checkpoint

PROMPTS = [{"prompt": "Who is Ada?", "completion": "A painter."}, {"prompt": "Where?", "completion": "In Oslo."}]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a model and files, from which the command is given."""
    write_checkpoint(tmp_path / "model")
    (tmp_path / "forget.jsonl").write_text("".join(json.dumps(row) + "\n" for row in PROMPTS))
    (tmp_path / "kept.csv").write_text("answer;question\nIn Riga.;Where is Bo?\n")
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters" / "a.txt").write_text("Ada lives in Oslo and paints.")
    chats = [{"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}]}]
    (tmp_path / "chats.json").write_text(json.dumps(chats))
    (tmp_path / "odd.jsonl").write_text('{"a": 1, "b": 2}\n')
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_what_it_writes_validates(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Fields are found by what people call them; files are named from the experiment's own folder."""
    assert main(["init", "--model", "model", "--forget", "forget.jsonl", "--retain", "kept.csv"]) == 0
    assert "forget-forget.yaml: 2 rows to forget" in capsys.readouterr().out
    text = (folder / "forget-forget.yaml").read_text()
    assert str(folder) not in text
    config = load(folder / "forget-forget.yaml")
    assert isinstance(config.source, FilesSource)
    assert {name: (one.question_key, one.answer_key) for name, one in config.source.sets.items()} == {
        "forget": ("prompt", "completion"),
        "retain": ("question", "answer"),
    }
    assert config.source.sets["forget"].path == folder / "forget.jsonl"
    assert [run.id for run in config.runs] == ["blur-npo"]
    assert "unlearned/blur-npo/seed-0" in Plan(config, folder / "results").jobs
    assert main(["validate", "forget-forget.yaml"]) == 0


def test_several_files_of_every_form_and_methods(folder: Path) -> None:
    (folder / "other").mkdir()
    given = ["--forget", "letters", "--forget", "forget.jsonl", "--retain", "kept.csv", "--retain", "chats.json"]
    out = ["--method", "npo", "--method", "graddiff", "--name", "first", "--out", "other/e.yaml"]
    assert main(["init", "--model", "model", *given, *out]) == 0
    config = load(folder / "other" / "e.yaml")
    assert isinstance(config.source, FilesSource)
    assert config.source.splits["request-1"].forget == ["forget", "forget-2"]
    assert config.source.sets["retain-2"].messages_key == "messages"
    assert config.experiment.name == "first" and [run.id for run in config.runs] == ["npo", "graddiff"]


def test_own_answers_are_offered_by_name(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Only this asks for what the model itself says; without it something to keep must be given."""
    assert main(["init", "--model", "model", "--forget", "forget.jsonl"]) == 2
    assert "--retain: what is to be kept is missing" in (said := capsys.readouterr().err) and "--own-answers" in said
    (folder / "p.txt").write_text("Who are you?\n")
    assert main(["init", "--model", "model", "--forget", "forget.jsonl", "--retain", "./forget.jsonl"]) == 2
    assert "--retain: 'forget.jsonl' is to be forgotten" in capsys.readouterr().err
    for given, rows in ((["--own-answers"], len(PROMPTS_OF_OURS)), (["--own-answers", "p.txt"], 1)):
        assert main(["init", "--model", "model", "--forget", "forget.jsonl", "--out", f"{rows}.yaml", *given]) == 0
        assert load(folder / f"{rows}.yaml").options.asked["retain"].rows == rows  # type: ignore[attr-defined]
    # The answers are not there before a run, and a row to forget can be looked at all the same.
    plan = Plan(load(folder / "1.yaml"), folder / "results")
    source = show_row._without_answers(plan.config, plan.jobs["data/forget-forget-data"].spec)
    assert source.sets["own-answers"] == source.sets["forget"]


@pytest.mark.parametrize(
    ("out", "reason"),
    [
        ("forget.jsonl/x.yaml", "forget.jsonl is a file"),
        ("forget.jsonl/a/x.yaml", "forget.jsonl is a file"),
        ("closed/x.yaml", "Permission denied"),
        ("n" * 300, "File name too long"),
    ],
)
def test_a_file_that_cannot_be_written_is_named(
    out: str, reason: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As where its folder is a file, or somebody else's."""
    if out.startswith("closed"):  # root may write everywhere

        def refuse(path: Path, text: str) -> None:
            raise PermissionError(13, "Permission denied", str(path))

        monkeypatch.setattr(init, "write_text", refuse)
    before = sorted(folder.rglob("*"))
    assert main(["init", "--model", "model", "--forget", "forget.jsonl", "--retain", "kept.csv", "--out", out]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"--out: {out}: cannot be written: {reason}") and "nothing was written" in said
    assert sorted(folder.rglob("*")) == before


def test_a_folder_that_is_not_there_is_said_to_be_taken_for_a_name(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only this mistypes a model's folder, which the hub is then asked for."""

    def refuse(path: Path) -> None:
        raise ConfigError(["model.hub: no such model"])

    monkeypatch.setattr(init, "load", refuse)
    assert main(["init", "--model", "my-modell-3", "--forget", "forget.jsonl", "--own-answers"]) == 2
    said = capsys.readouterr().err
    assert "--model: there is no folder 'my-modell-3'" in said and "--model: no such model" in said


@pytest.mark.parametrize("name", ["./nowhere/", "/nowhere/my/model", "a b"])
def test_a_folder_that_can_be_no_name_on_the_hub(
    name: str, folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only this asks the hub's own library for what can be no name there: it raises before anything is fetched."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert main(["init", "--model", name, "--forget", "forget.jsonl", "--own-answers"]) == 2
    said = capsys.readouterr().err
    assert f"--model: there is no folder {name!r}" in said and "not a repository's name" in said
    assert not (folder / "forget-forget.yaml").exists()


def test_nothing_is_left_of_a_file_that_could_not_be_finished(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only this ends the command half-way, as a signal does."""

    def stopped(path: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(init, "load", stopped)
    with pytest.raises(KeyboardInterrupt):
        main(["init", "--model", "model", "--forget", "forget.jsonl", "--own-answers"])
    assert not (folder / "forget-forget.yaml").exists()


def test_what_is_wrong_is_named_as_it_was_given(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Only this misspells a method and a file of the command line: an option is named, and the file that is there."""
    given = ["init", "--model", "model", "--retain", "kept.csv", "--forget"]
    assert main([*given, "forget.jsonl", "--method", "blur"]) == 2
    assert "--method: unknown method 'blur'" in capsys.readouterr().err
    assert main([*given, "forget.jsonl", "--name", "My Name"]) == 2
    said = capsys.readouterr().err
    assert "--name: 'My Name' is not allowed: small letters, digits" in said and "benchmark" not in said
    for name in ("a #b", "a: b"):  # of which YAML would read something else
        assert main([*given, "forget.jsonl", "--name", name]) == 2
        assert f"--name: {name!r} is not allowed: small letters, digits" in capsys.readouterr().err
    assert main([*given, "forget.jsonl", "--name", "2024"]) == 0
    assert load(folder / "2024.yaml").experiment.name == "2024"
    assert main([*given, "forgt.jsonl"]) == 2
    said = capsys.readouterr().err
    assert "forgt.jsonl" in said and "did you mean 'forget.jsonl'?" in said
    assert main(["validate", "forget-forget.yml"]) == 2
    assert "did you mean" not in capsys.readouterr().err


def test_few_rows_make_enough_steps_and_a_folder_is_counted_whole(folder: Path) -> None:
    """Only this holds the number of steps: 2 rows are one batch, 20 times; 40 letters are 5 batches of 8, 5 times."""
    assert main(["init", "--model", "model", "--forget", "forget.jsonl", "--retain", "kept.csv"]) == 0
    for number in range(1, 40):
        (folder / "letters" / f"{number}.txt").write_text("Ada lives in Oslo.")
    assert main(["init", "--model", "model", "--forget", "letters", "--retain", "kept.csv"]) == 0
    found = {name: load(folder / f"forget-{name}.yaml").runs[0].method.training for name in ("forget", "letters")}
    assert [(one.epochs, one.global_batch) for one in found.values()] == [(20, 2), (5, 8)]


def test_a_layout_that_fits_is_written(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = ["init", "--model", "model", "--forget", "forget.jsonl", "--retain", "kept.csv"]
    assert main([*files, "--gpus", "2"]) == 0
    assert load(folder / "forget-forget.yaml").layout.ranks == 2
    assert main([*files, "--gpus", "2", "--gpu-memory", "3GiB", "--out", "x.yaml"]) == 2
    assert "--gpus: at no layout of 2 GPUs of 3 GiB" in capsys.readouterr().err and not (folder / "x.yaml").exists()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (["--forget", "forget.jsonl", "--gpus", "2", "--gpu-memory", "80"], "--gpu-memory: '80'"),
        (["--forget", "forget.jsonl", "--gpu-memory", "80GiB"], "--gpu-memory: says how large each of --gpus is"),
        (["--forget", "forget.jsonl", "--gpus", "0"], "--gpus: 0; at least 1"),
        (["--forget", "none.jsonl"], "none.jsonl: cannot be read"),
        (["--forget", "odd.jsonl"], "odd.jsonl, line 1: its fields are a, b; one of question, prompt"),
        (["--forget", "forget.jsonl", "--method", "blurr"], "unknown method 'blurr'"),
        (["--forget", "forget.jsonl", "--model", "adapter"], "is a LoRA adapter"),
    ],
)
def test_what_will_not_do_is_said_and_nothing_is_left(
    changes: list[str], words: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "adapter").mkdir()
    (folder / "adapter" / "adapter_config.json").write_text("{}")
    assert main(["init", "--model", "model", "--retain", "kept.csv", "--out", "x.yaml", *changes]) == 2
    assert words in capsys.readouterr().err
    assert not (folder / "x.yaml").exists()


def test_a_file_that_is_there_is_left_alone_and_a_large_model_runs_in_bf16(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ["init", "--model", "model", "--forget", "forget.jsonl", "--retain", "kept.csv", "--out", "x.yaml"]
    monkeypatch.setattr("pipeline.commands.init.LARGE", CONFIG["vocab_size"])
    assert main(arguments) == 0
    assert load(folder / "x.yaml").experiment.runtime.precision == "bf16"
    (folder / "x.yaml").write_text("mine")
    assert main(arguments) == 2
    assert "x.yaml: is there already" in capsys.readouterr().err and (folder / "x.yaml").read_text() == "mine"
