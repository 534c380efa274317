"""The rules spell what their steps read and write; the plan says it too. Both must say the same."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from pipeline.config.load import load
from pipeline.workflow.plan import Plan
from tests.support.checkpoints import write_checkpoint

ROOT = Path(__file__).parents[3]
# Snakemake with a hook at the end of a dry run: each job's specification, and its input.
DRY_RUN = """
import json, sys
from snakemake import cli, dag

def listed(self):
    jobs = {job.output.get("spec"): sorted(set(job.input)) for job in self.jobs if job.params}
    print(json.dumps({str(spec): [*map(str, files)] for spec, files in jobs.items()}), file=open(sys.argv[1], "w"))
    return stats(self)

stats, dag.DAG.stats = dag.DAG.stats, listed
cli.main(sys.argv[2:])
"""


@pytest.mark.slow
@pytest.mark.parametrize("experiment", ["mini-robust", "mini-muse-requests", "wmdp-zephyr-7b", "judged"])
def test_the_rules_read_what_the_plan_says(tmp_path: Path, experiment: str) -> None:
    if experiment == "judged":
        write_checkpoint(tmp_path / "model")
        (tmp_path / "a.jsonl").write_text('{"question": "Who?", "answer": "Ada."}\n')
        source = {"kind": "files", "sets": {"a": "a.jsonl", "own": {"own_answers": {}}}}
        source["splits"] = {"first": {"forget": "a", "retain": "own"}}
        values = {
            "name": "judged",
            "title": "Judged, keeping what the model itself answers",
            "benchmark": {"name": "mine", "title": "Mine", "family": "custom", "source": source},
            "model": {"path": "model"},
            "split": "first",
            "methods": ["npo"],
            "data": {"max_length": 64},
            "judge": {"base_url": "https://host/v1", "model": "judge"},
            "utility": [str(ROOT / "workflow_configs/data/smollm2-custom/general-knowledge.yaml")],
        }
        (tmp_path / "judged.yaml").write_text(yaml.safe_dump(values))
        experiment = str(tmp_path / "judged.yaml")
    results = tmp_path / "results"
    command = [sys.executable, "-c", DRY_RUN, str(tmp_path / "jobs.json"), "--dry-run", "--cores", "2", "all"]
    command += ["--config", f"experiment={experiment}", f"results={results}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stdout + done.stderr
    rules = json.loads((tmp_path / "jobs.json").read_text())
    plan = Plan(load(experiment), results)
    assert rules == {
        str(job.spec.output / "spec.yaml"): sorted(map(str, set(job.inputs))) for job in plan.jobs.values()
    }
