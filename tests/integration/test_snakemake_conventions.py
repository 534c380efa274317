"""The workflow as Snakemake's conventions want it: found by its folder, and usable as a module of another workflow."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from pipeline.config.load import load
from pipeline.workflow.plan import Plan
from pipeline.workflow.snakemake_rules import OPTIONS
from tests.support import programs

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
OTHER_WORKFLOW = """
module unlearning:
    snakefile: {snakefile!r}
    config: {{"experiment": {experiment!r}, "results": "unlearning"}}


use rule * from unlearning as unlearning_*


rule all:
    default_target: True
    input:
        "lines.txt",


rule count_lines:
    input:
        "unlearning/{experiment}/report/table.csv",
    output:
        "lines.txt",
    shell:
        "wc -l {{input}} > {{output}}"
"""


def dry_run(folder: Path, *arguments: str) -> str:
    """What Snakemake prints about a run from nothing, in which it would start jobs."""
    done = programs.snakemake(folder, "--dry-run", "--cores", "2", *arguments)
    printed = done.stdout + done.stderr
    assert done.returncode == 0, printed
    return printed


def counts(printed: str) -> dict[str, int]:
    """How many jobs each rule has."""
    return {name: int(count) for name, count in re.findall(r"^([a-z_]+) +(\d+)$", printed, re.MULTILINE)}


def test_the_workflow_is_found_by_its_folder(tmp_path: Path) -> None:
    """The shim plans every job of the experiment, and its own target."""
    options = ("--config", f"results={tmp_path}")
    shim = counts(dry_run(tmp_path, "--snakefile", str(ROOT / "workflow" / "Snakefile"), *options))
    assert shim.pop("everything") == shim["write_report"] == 1
    assert shim.pop("total") - 1 == sum(shim.values()) == len(Plan(load("mini"), tmp_path).jobs)


def test_another_workflow_uses_it_as_a_module(tmp_path: Path) -> None:
    """From another folder, with names and paths of its own; what fetches stays where Snakemake runs."""
    experiment = "tofu-llama-3.2-1b"
    snakefile = str(ROOT / "workflow" / "Snakefile")
    (tmp_path / "Snakefile").write_text(OTHER_WORKFLOW.format(snakefile=snakefile, experiment=experiment))
    printed = dry_run(tmp_path, "--printshellcmds")
    found = counts(printed)
    assert found["count_lines"] == found["unlearning_write_report"] == 1
    assert set(found) - {"all", "count_lines", "total"} == {name for name in found if name.startswith("unlearning_")}
    assert f"unlearning/{experiment}/report/spec.yaml" in printed
    # Rules that must run where Snakemake does say so themselves: a list of names would not know these names.
    assert "localrules directive specifies rules that are not present" not in printed
    assert found["unlearning_fetch_model"] == 2


def test_a_title_is_no_format_string(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only this gives Snakemake a title that would print a secret, and one that names what is not there."""
    monkeypatch.setenv("HF_TOKEN", "hf_secretsecretsecret")
    for kind, name in (("experiments", "mini"), ("benchmarks", "mini")):
        values = yaml.safe_load((ROOT / "workflow_configs" / kind / f"{name}.yaml").read_text(encoding="utf-8"))
        values["title"] = "{os.environ[HF_TOKEN]} {v2} {0} {wildcards.model} }{ {{x}}"
        (tmp_path / kind).mkdir()
        (tmp_path / kind / f"{name}.yaml").write_text(yaml.safe_dump(values))
    options = ("--config", f"experiment={tmp_path}/experiments/mini.yaml", f"results={tmp_path}/results")
    printed = dry_run(tmp_path, "--snakefile", str(ROOT / "Snakefile"), *options)
    assert f"data: {values['title']}, forget10" in printed and "hf_secret" not in printed


def test_no_message_or_command_has_a_text_that_snakemake_would_format() -> None:
    """Only this sees every rule: what is put into a message or a command goes through ``steps.literal``."""
    for file in sorted((ROOT / "pipeline" / "workflow" / "rules").glob("*.smk")):
        text = file.read_text(encoding="utf-8")
        for found in re.findall(r"(?:message|shell):\s+(f?\".*\")|shell\((f?\".*\")\)", text):
            said = "".join(found)
            assert not said.startswith("f") or said.count("{") == said.count("{steps.literal("), f"{file.name}: {said}"


def test_the_manual_lists_the_workflows_options() -> None:
    manual = (ROOT / "config" / "README.md").read_text(encoding="utf-8")
    table = manual[manual.index("| option |") :].split("\n\n")[0]
    assert tuple(re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE)) == OPTIONS


def test_the_catalogs_file_says_how_it_is_run() -> None:
    usage = yaml.safe_load((ROOT / ".snakemake-workflow-catalog.yml").read_text(encoding="utf-8"))["usage"]
    assert usage["report"] is True
    assert usage["software-stack-deployment"] == {"conda": False, "apptainer": True}
    profile = usage["mandatory-flags"]["flags"].split()[-1]
    assert (ROOT / profile / "config.yaml").is_file()
