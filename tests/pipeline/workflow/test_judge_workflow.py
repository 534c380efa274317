"""The judge as a step of an experiment: off unless asked for, a job a model, its key kept from other steps."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import yaml

from pipeline import benchmarks
from pipeline.benchmarks.base import Judged
from pipeline.commands.validate import summary
from pipeline.config.checks import data as checks
from pipeline.config.load import load
from pipeline.config.located_yaml import ConfigError
from pipeline.judging.settings import JudgeSettings
from pipeline.launch.environment import set_environment
from pipeline.specs import FetchSpec, JudgeSpec, PrepareSpec
from pipeline.workflow.plan import Plan
from pipeline.workflow.work import describe
from tests.pipeline.steps.test_judge import EXAMPLES, evaluation

ROOT = Path(__file__).parents[3]
MINI = ROOT / "workflow_configs/experiments/mini.yaml"
KEY = "sk-verysecretindeed0123456789"
ADDRESS = "https://host/v1"


def experiment(folder: Path, judge: Any) -> Path:
    """Mini with one method and this ``judge``."""
    values = yaml.safe_load(MINI.read_text()) | {"name": "judged", "judge": judge}
    values["methods"] = [entry for entry in values["methods"] if entry["method"] == "npo"]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "judged.yaml").write_text(yaml.safe_dump(values))
    return folder / "judged.yaml"


def problems(folder: Path, judge: Any) -> str:
    with pytest.raises(ConfigError) as error:
        load(experiment(folder, judge))
    return str(error.value)


def test_it_is_off_by_default() -> None:
    plan = Plan(load("mini"), Path("out"))
    assert plan.judged == [] and not any(name.startswith("judge") for name in plan.jobs)
    assert all(entry.judgement is None for entry in plan.jobs["report"].spec.entries)


def test_every_evaluated_model_is_judged_and_reported(tmp_path: Path) -> None:
    settings = {"base_url": ADDRESS, "model": "judge", "api_key_env": "MY_JUDGE_API_KEY", "max_examples": 7}
    plan = Plan(load(experiment(tmp_path, settings)), Path("out"))
    assert [str(model) for model in plan.judged] == ["retrain", "target", "npo-seed-0"]
    job = plan.jobs["judge/npo-seed-0/mini"]
    evaluated = plan.jobs["evaluation/npo-seed-0/mini"].spec.output
    assert job.inputs == (evaluated / "evaluation.json", evaluated / "examples.jsonl")
    assert job.spec == JudgeSpec(
        benchmark="mini",
        split="forget10",
        model_id="npo-seed-0",
        seed=0,
        evaluation=evaluated,
        sets={"forget": "forget", "retain": "retain"},
        settings=JudgeSettings(**settings),
        cache=Path("out/cache/judge"),
        output=Path("out/judged/judge/npo-seed-0/mini"),
    )
    report = plan.jobs["report"]
    assert {entry.model_id: entry.judgement for entry in report.spec.entries} == {
        str(model): plan.jobs[f"judge/{model}/mini"].spec.output for model in plan.judged
    }
    for name in ("judgement.json", "summary.json", "provenance.json"):
        assert job.spec.output / name in report.inputs
    assert describe(plan, job) == "at most 7 answers of each of two sets, by judge"
    # With and without it, everything else is the same.
    without = Plan(load(experiment(tmp_path, None)), Path("out")).jobs
    assert {name: job.spec for name, job in without.items() if name != "report"} == {
        name: job.spec for name, job in plan.jobs.items() if name != "report" and not name.startswith("judge/")
    }


@pytest.mark.parametrize(
    ("judge", "message"),
    [
        ({"base_url": ADDRESS}, "judge.model: is missing"),
        ({"base_url": ADDRESS, "model": "m", "api_key": KEY}, "judge.api_key: unknown key; did you mean 'api_key_env'"),
        ({"base_url": ADDRESS, "model": "m", "api_key_env": KEY}, "judge.api_key_env: must be the NAME of an env"),
        ({"base_url": f"{ADDRESS}?key={KEY}", "model": "m"}, "judge.base_url: must hold neither user, password, query"),
        ({"base_url": "host", "model": "m"}, "judge.base_url: must be an address such as https://host/v1"),
        ({"base_url": ADDRESS, "model": "m", "retries": -1}, "judge.retries: -1 is not allowed"),
        ({"base_url": "http://x/v1", "model": "m", "api_key_env": "JUDGE_KEY"}, "judge.base_url: must be https://"),
    ],
)  # fmt: skip
def test_a_wrong_setting_is_named_and_a_key_in_the_wrong_place_not_repeated(
    tmp_path: Path, judge: dict[str, Any], message: str
) -> None:
    found = problems(tmp_path, judge)
    assert f"judged.yaml:{_line(tmp_path, message)}: {message}" in found and KEY not in found


def _line(folder: Path, message: str) -> int:
    """The line that a message is about: of its key, or of ``judge`` where the key is missing."""
    key = message.split(":")[0].removeprefix("judge.")
    lines = (folder / "judged.yaml").read_text().splitlines()
    own = [i for i, line in enumerate(lines, 1) if line.strip().startswith(f"{key}:") and line.startswith("  ")]
    judge = lines.index("judge:") + 1
    return next((i for i in own if i > judge), judge) if "is missing" not in message else judge


def test_a_family_without_answers_cannot_be_judged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = {"base_url": ADDRESS, "model": "judge"}
    tofu = type(benchmarks.family("tofu"))
    monkeypatch.setattr(tofu, "judged", lambda self, options: {})
    assert "judge: with its options, 'mini' generates no answers to be judged" in problems(tmp_path, settings)
    others = [name for name in benchmarks.families() if name != "tofu" and isinstance(benchmarks.family(name), Judged)]
    monkeypatch.setattr(checks, "family", lambda name: Mute() if name == "tofu" else benchmarks.family(name))
    message = f"judge: answers of the family 'tofu' cannot be judged; allowed: {', '.join(others) or 'none'}"
    assert message in problems(tmp_path, settings)


class Mute:
    """TOFU without what a judge needs."""

    def __getattr__(self, name: str) -> Any:
        if name == "judged":
            raise AttributeError(name)
        return getattr(benchmarks.family("tofu"), name)


def test_what_families_give_to_be_judged_are_sets_of_theirs() -> None:
    for name in benchmarks.families():
        family = benchmarks.family(name)
        if isinstance(family, Judged):
            given = {part: {"form": "questions", "part": part, "rows": 1} for part in ("forget", "retain")}
            options = family.options.model_validate({"family": name, **({"asked": given} if name == "custom" else {})})
            assert set(family.judged(options).values()) <= set(family.sets(options))


def test_the_key_reaches_the_judge_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And a token the hub alone; keys that are none of ours reach no step, under Apptainer's names either."""
    others = ("WANDB_API_KEY", "AWS_SECRET_ACCESS_KEY", "AWS_ACCESS_KEY_ID", "GITHUB_TOKEN", "DB_PASSWORD", "JUDGE_KEY")
    names = ("MY_JUDGE_API_KEY", "HF_TOKEN", "OPENAI_API_KEY", *others)

    def seen(spec: Any) -> list[str]:
        for name in names:
            for beginning in ("", "APPTAINERENV_", "SINGULARITYENV_"):
                monkeypatch.setenv(f"{beginning}{name}", KEY)
        monkeypatch.setenv("HF_HUB_OFFLINE", "0")
        set_environment(spec)
        return sorted({name.split("ENV_")[-1] for name, value in os.environ.items() if value == KEY})

    plan = Plan(
        load(experiment(tmp_path, {"base_url": ADDRESS, "model": "m", "api_key_env": "MY_JUDGE_API_KEY"})), tmp_path
    )
    assert seen(plan.jobs["judge/target/mini"].spec) == ["MY_JUDGE_API_KEY"]
    assert seen(FetchSpec(hub="a/b", output=tmp_path)) == ["HF_TOKEN"]
    assert seen(next(job.spec for job in plan.jobs.values() if isinstance(job.spec, PrepareSpec))) == []


def test_validate_says_where_a_key_goes(tmp_path: Path) -> None:
    """Only this shows that the words of ``validate`` name variable and address."""
    settings = {"base_url": ADDRESS, "model": "m", "api_key_env": "MY_JUDGE_API_KEY"}
    lines = summary(load(experiment(tmp_path, settings)))
    assert f"judge      m; questions, answers and the key in MY_JUDGE_API_KEY go to {ADDRESS}" in lines
    assert not any(line.startswith("judge") for line in summary(load(experiment(tmp_path, None))))


@pytest.mark.parametrize("name", ["HF_TOKEN", "AWS_SECRET_ACCESS_KEY", "GITHUB_TOKEN", "HOME", "WANDB_API_KEY"])
def test_an_experiment_cannot_send_a_secret_that_is_no_judges(name: str, tmp_path: Path) -> None:
    assert "judge.api_key_env: must be the NAME" in problems(
        tmp_path, {"base_url": ADDRESS, "model": "m", "api_key_env": name}
    )


class Handler(BaseHTTPRequestHandler):
    """Gives every answer the best score."""

    protocol_version = "HTTP/1.1"
    keys: list[str | None] = []
    processes: list[str] = []

    def do_POST(self) -> None:
        if not self.processes:  # what everybody on the machine sees while the judge is asked
            self.processes.append(" ".join(_command_lines()))
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.keys.append(self.headers["Authorization"])
        score = 0 if "gives away" in request["messages"][0]["content"] else 2
        message = {"role": "assistant", "content": json.dumps({"score": score})}
        body = json.dumps({"model": "m", "choices": [{"message": message}]}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


def _command_lines() -> Iterator[str]:
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):  # of a process that has ended
            yield file.read_bytes().replace(b"\0", b" ").decode("utf-8", "replace")


@pytest.fixture
def address() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    Handler.keys.clear()
    Handler.processes.clear()
    yield f"http://127.0.0.1:{server.server_port}/v1"
    server.shutdown()
    server.server_close()


@pytest.mark.slow
def test_the_rule_runs_with_the_key_and_not_without(
    address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a finished evaluation alone; the key, and other secrets, are in no result, log, specification, record of
    Snakemake's, output or list of processes."""
    path = experiment(tmp_path, {"base_url": address, "model": "m", "api_key_env": "MY_JUDGE_API_KEY"})
    root = tmp_path / "results" / "judged"
    folder = evaluation(root / "evaluation" / "target" / "mini", EXAMPLES)
    found = json.loads((folder / "evaluation.json").read_text()) | {"model": "target"}
    (folder / "evaluation.json").write_text(json.dumps(found))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.delenv("MY_JUDGE_API_KEY", raising=False)
    target = root / "judge" / "target" / "mini" / "judgement.json"
    profile = ROOT / "workflow_configs/profiles/local"
    command = [sys.executable, "-m", "snakemake", "--snakefile", str(ROOT / "Snakefile"), "--profile", str(profile)]
    command += [str(target), "--allowed-rules", "judge_model", "--config", f"experiment={path}"]
    command += [f"results={tmp_path / 'results'}"]

    def run() -> subprocess.CompletedProcess[str]:
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)

    refused = run()
    assert refused.returncode != 0 and "MY_JUDGE_API_KEY is not set" in refused.stderr and not Handler.keys
    monkeypatch.setenv("MY_JUDGE_API_KEY", KEY)
    others = {name: f"secret-of-{name}" for name in ("HF_TOKEN", "AWS_SECRET_ACCESS_KEY", "OPENAI_API_KEY")}
    for name, text in others.items():
        monkeypatch.setenv(name, text)
    done = run()
    assert done.returncode == 0, done.stdout + done.stderr
    judgement = json.loads(target.read_text())
    assert judgement["metrics"]["judge_hm"] == 1.0 and judgement["counts"]["asked"] == len(Handler.keys) == 12
    assert set(Handler.keys) == {f"Bearer {KEY}"}
    assert json.loads(target.with_name("provenance.json").read_text())["step"] == "judge"
    assert f"judge: questions, answers and the key in MY_JUDGE_API_KEY go to {address}" in done.stderr
    assert any("pipeline.launch" in line for line in Handler.processes)
    files = [file for file in tmp_path.rglob("*") if file.is_file()]
    everything = done.stdout + done.stderr + "".join(file.read_text(errors="replace") for file in files)
    for secret in (KEY, *others.values()):
        assert secret not in everything + "".join(Handler.processes)
