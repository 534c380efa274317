"""The profile `slurm` with stand-ins for Slurm's programs: what is submitted, what runs again, what stops at once."""

from __future__ import annotations

import json
import os
import re
import resource
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from pipeline.config.load import CONFIGS, load
from pipeline.config.site import Site
from pipeline.workflow import snakemake_rules
from pipeline.workflow.plan import Plan
from tests.support import programs

ROOT = CONFIGS.parent
SOURCES = ("Snakefile", "pipeline", "megatron_ext", "workflow_configs")
FOLDERS = ("checkpoint", "tokenizer", "figures", "examples")
STAND_INS = {
    "apptainer": "print('apptainer version 1.4.5')",
    "sinfo": "print('gpu' if '--format=%R' in sys.argv else 'gpu*')",
    "scontrol": "print('MinJobAge = 600 sec')",
    "sacct": "sys.exit('no accounting')",
    # Every job that was submitted has ended well.
    "squeue": "print(*(f'{i}|COMPLETED' for i, _ in enumerate(log.open(), 1)), sep='\\n')",
    # Writes the command down, and puts in place what the job would have made (and the jobs after it).
    "sbatch": """
if "--test-only" in sys.argv:
    sys.exit("sbatch: error: Invalid account or account/partition combination" if "--account=no" in sys.argv else 0)
with log.open("a") as lines:
    lines.write(json.dumps(sys.argv[1:]) + "\\n")
for name in (log.parent / "outputs").read_text().split():
    path = Path(name)
    if path.name in FOLDERS:
        path.mkdir(parents=True, exist_ok=True)
    else:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
print(sum(1 for _ in log.open()))
""",
}


def stand_ins(folder: Path, log: Path) -> dict[str, str]:
    """Write the programs into ``folder``; an environment in which they are found first."""
    folder.mkdir()
    head = f"#!{sys.executable}\nimport json, sys\nfrom pathlib import Path\n"
    head += f"log = Path({str(log)!r})\nFOLDERS = {FOLDERS}\n"
    for name, text in STAND_INS.items():
        (folder / name).write_text(head + text)
        (folder / name).chmod(0o755)
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("APPTAINER", "SLURM"))}
    return kept | {"PATH": os.pathsep.join([str(folder), os.environ["PATH"]])}


class Project:
    """A copy of the project beside stand-ins, with a site file and an experiment of its own."""

    def __init__(self, folder: Path):
        self.folder, self.log = folder / "clone", folder / "submitted"
        self.folder.mkdir()
        for name in SOURCES:
            copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copyfile
            copy(ROOT / name, self.folder / name)
        (self.folder / "slurm").symlink_to("workflow_configs/profiles/slurm")
        self.environment = stand_ins(folder / "bin", self.log)
        for name in ("a", "b"):
            (folder / f"{name}.sif").touch()
        self.image = folder / "image.sif"
        self.image.symlink_to(folder / "a.sif")
        experiment = self.folder / "workflow_configs" / "experiments" / "mini.yaml"
        content = yaml.safe_load(experiment.read_text())
        content |= {"methods": ["npo"], "layout": 4, "runtime": {"device": "auto", "threads": 2}}
        experiment.write_text(yaml.safe_dump(content, sort_keys=False))
        self.site()

    def site(self, **values: object) -> None:
        known = {"partition": "gpu", "gpus_per_node": 2, "image": str(self.image)}
        (self.folder / "site.yaml").write_text(yaml.safe_dump(known | values))

    def snakemake(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return programs.snakemake(self.folder, *arguments, environment=self.environment)

    def would_run(self, *arguments: str) -> set[str]:
        done = self.snakemake("--profile", "slurm", "--dry-run", "all", *arguments)
        assert done.returncode == 0, done.stdout + done.stderr
        return set(re.findall(r"^Job \d+: (.*)$", done.stdout + done.stderr, re.MULTILINE))


EVERYTHING = {
    "data: Mini TOFU, forget10",
    *(f"train: {model}" for model in ("base", "target", "retrain")),
    "reference: log-probabilities of forget",
    "unlearn: npo, seed 0",
    *(f"evaluate: {model}, mini" for model in ("target", "retrain", "npo-seed-0")),
    "report: results/mini/report/index.html",
}


@pytest.fixture(scope="module")
def submitted(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A project in which `snakemake --profile slurm all` has come to its end."""
    project = Project(tmp_path_factory.mktemp("cluster"))
    done = project.snakemake("--profile", "slurm", "--summary")
    outputs = [line.split("\t")[0] for line in done.stdout.splitlines() if line.startswith("results/")]
    assert "results/mini/report/index.html" in outputs, done.stdout + done.stderr
    (project.log.parent / "outputs").write_text("\n".join(outputs))
    quick = ("--slurm-init-seconds-before-status-checks", "1", "--no-hooks", "--latency-wait", "5")
    done = project.snakemake("--profile", "slurm", "all", *quick)
    assert done.returncode == 0, done.stdout + done.stderr
    return project


@pytest.fixture
def project(submitted: Project) -> Iterator[Project]:
    yield submitted
    submitted.site()
    submitted.image.unlink()
    submitted.image.symlink_to(submitted.image.with_name("a.sif"))


@pytest.mark.slow
def test_every_job_is_submitted_with_what_it_needs(submitted: Project) -> None:
    lines = [json.loads(line) for line in submitted.log.read_text().splitlines()]
    assert len(lines) == len(EVERYTHING)
    by_rule: dict[str, list[str]] = {}
    for line in lines:
        comment = line[line.index("--comment") + 1]
        by_rule.setdefault(re.sub(r"_wildcards_.*", "", comment), line)
        assert line[line.index("-p") + 1] == "gpu" and "--requeue" in line
        assert int(line[line.index("-t") + 1]) >= 10 and int(line[line.index("--mem") + 1]) > 2048
        assert "--ntasks-per-gpu" not in " ".join(line)
    for rule in ("rule_prepare", "rule_write_report"):
        assert {"--nodes=1", "--ntasks=1", "--cpus-per-task=1"} <= set(by_rule[rule])
        assert not any(option.startswith(("--gres", "--signal")) for option in by_rule[rule])
    several = {"--nodes=2", "--ntasks-per-node=2", "--cpus-per-task=2", "--gres=gpu:2"}
    for rule in ("train_model", "reference_log_probabilities", "unlearn_target", "evaluate_model"):
        found = set(by_rule[f"rule_{rule}"])
        assert several <= found
        warned = {option for option in found if option.startswith("--signal=")}
        assert len(warned) == (rule in ("train_model", "unlearn_target"))
        assert all(option.endswith("@120") for option in warned)


@pytest.mark.slow
def test_several_ranks_bring_containers_of_their_own(submitted: Project) -> None:
    done = submitted.snakemake("--profile", "slurm", "-n", "-p", "--forceall", "all")
    found = re.findall(
        r"^Shell command: (exec python -m pipeline\.launch results/mini/(\w+).*)$", done.stdout, re.MULTILINE
    )
    commands = {step: command.partition(" < <(")[0] for command, step in found}  # without the specification
    image = f"--nodes 2 --image {submitted.image.with_name('a.sif')}"
    for step in ("models", "reference", "unlearned", "evaluation"):
        assert commands[step].endswith(image), commands[step]
    for step in ("data", "report"):
        assert "--image" not in commands[step] and "--nodes" not in commands[step]
    assert all(" --log results/mini/logs/" in command for command in commands.values())


@pytest.mark.slow
def test_another_site_reruns_nothing(project: Project) -> None:
    project.site(partition="other", time_factor=3.0, warn_seconds=300, gpu_type="h100", gpus_per_node=4, qos="low")
    assert project.would_run() == set()


@pytest.mark.slow
def test_another_image_reruns_everything(project: Project) -> None:
    project.image.unlink()
    project.image.symlink_to(project.image.with_name("b.sif"))
    assert project.would_run() == EVERYTHING
    assert project.would_run("--config", f"image={project.image.with_name('a.sif')}") == set()


@pytest.mark.slow
def test_a_changed_method_reruns_its_branch(project: Project) -> None:
    path = project.folder / "workflow_configs" / "experiments" / "mini.yaml"
    before = path.read_text()
    path.write_text(before.replace("- npo\n", "- method: npo\n  overrides: {forget: {beta: 0.2}}\n"))
    try:
        report = "report: results/mini/report/index.html"
        assert project.would_run() == {"unlearn: npo, seed 0", "evaluate: npo-seed-0, mini", report}
    finally:
        path.write_text(before)


@pytest.mark.slow
def test_the_report_alone_can_be_made_again(project: Project) -> None:
    found = project.would_run("--forcerun", "write_report")
    assert found == {"report: results/mini/report/index.html"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("site", "message"),
    [
        ({"partition": "gpus"}, "partition: Slurm has no 'gpus'; did you mean 'gpu'? allowed: gpu"),
        (
            {"account": "no", "extra": "--reservation=night"},
            "Slurm takes no job with --partition=gpu --account=no --reservation=night: sbatch: error: Invalid account",
        ),
        ({"image": "nowhere.sif"}, "nowhere.sif' does not exist. `make image` or `make image-cpu` builds one"),
    ],
)
def test_what_cannot_run_stops_before_anything_starts(project: Project, site: dict[str, object], message: str) -> None:
    project.site(**site)
    before = project.log.read_text()
    done = project.snakemake("--profile", "slurm", "--forceall", "--nolock", "all")
    assert done.returncode == 2, done.stdout + done.stderr
    assert message in done.stderr and "Traceback" not in done.stderr
    assert project.log.read_text() == before


@pytest.mark.slow
@pytest.mark.parametrize(
    ("site", "message"),
    [
        ({"gpus_per_node": 3, "partiton": "gpu"}, "site.yaml:4: partiton: unknown key; did you mean 'partition'?"),
        ({"cpus_per_node": 1}, "mini.yaml:11: runtime.threads: 2 of each rank, but cpus_per_node is 1"),
        ({"memory_per_node_mb": 3000}, "site.yaml: memory_per_node_mb: 3000; "),
    ],
)
def test_a_site_that_does_not_hold_the_jobs_stops_the_planning(
    project: Project, site: dict[str, object], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    project.site(**site)
    experiment = project.folder / "workflow_configs" / "experiments" / "mini.yaml"
    options = {"experiment": str(experiment), "site": str(project.folder / "site.yaml")}
    with pytest.raises(SystemExit, match="2"):
        snakemake_rules.read(options, cluster=True)
    assert message in capsys.readouterr().err


@pytest.mark.slow
def test_the_largest_experiment_is_planned_in_seconds(tmp_path: Path) -> None:
    """In processor time of the whole command, against that for the smallest: machines differ, and are shared."""
    experiments = (CONFIGS / "experiments").glob("*.yaml")
    plans = sorted(
        (Plan(load(file.stem, None, Site()), Path("out")) for file in experiments), key=lambda p: len(p.jobs)
    )
    assert len(plans[-1].jobs) >= 98 > 3 * len(plans[0].jobs)
    environment = stand_ins(tmp_path / "bin", tmp_path / "log")

    def seconds(plan: Plan) -> float:
        name = plan.config.experiment.name
        options = [
            "--profile",
            "slurm",
            "--dry-run",
            "all",
            "--config",
            f"experiment={name}",
            f"results={tmp_path}/new",
        ]
        options.append("site=workflow_configs/site.example.yaml")
        command = [sys.executable, "-m", "snakemake", *options]
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert done.returncode == 0, done.stdout + done.stderr
        assert re.search(rf"^total +{len(plan.jobs) + 1}$", done.stdout, re.MULTILINE)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    assert seconds(plans[-1]) < 2.5 * seconds(plans[0])


def test_without_slurm_nothing_starts(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(SystemExit, match="2"):
        snakemake_rules.require_slurm(Site())
    assert "sinfo: [Errno 2] No such file" in capsys.readouterr().err


def test_without_apptainer_nothing_starts(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(SystemExit, match="2"):
        snakemake_rules.require_apptainer()
    assert capsys.readouterr().err.startswith("apptainer: ")
