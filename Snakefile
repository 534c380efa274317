# From benchmark and model to a report: fetch -> data -> train -> reference -> unlearn -> evaluate ->
# (judge ->) report.
#
#   snakemake --profile workflow_configs/profiles/local all --config experiment=NAME data_root=DIR results=DIR
#   snakemake --profile slurm all --config experiment=NAME
#
# `unlearn run NAME` starts this with progress, and goes on by itself where a run was killed. Every option of --config may
# be left out; `site=FILE` and `image=FILE` are the others (docs/configuration.md). `fetch`, `data`, `train`, `unlearn`,
# `evaluate`, `judge` and `report` in place of `all` stop after that stage. A step is one program with one argument, the
# spec.yaml in its folder. With `--software-deployment-method apptainer`, as in the profile slurm, steps run in the image.
import shlex
import sys

from snakemake.logging import logger
from snakemake.settings.types import DeploymentMethod
from snakemake.utils import min_version

min_version("9.13")
sys.path.insert(0, str(workflow.current_basedir))

from pipeline.config import sizing
from pipeline.launch.image import image
from pipeline.workflow import failures, forked_steps, partial_report, slurm_executor
from pipeline.workflow import snakemake_rules as steps
from pipeline.workflow.free_memory import free_memory

# A limit of submitted jobs is what a profile for a cluster has instead of cores; dry runs know no executor. And a job
# reads this file again, on its node.
CLUSTER = workflow.resource_settings.nodes is not None or workflow.remote_exec
IN_IMAGE = DeploymentMethod.APPTAINER in workflow.deployment_settings.deployment_method

plan, site = steps.read(config, CLUSTER)
IMAGE = image(site, sizing.on_gpus(plan.config.experiment.runtime.device, site if CLUSTER else None))
jobs = steps.Rules(plan, site, IMAGE, IN_IMAGE, CLUSTER)
steps.use_cache(site)
steps.set_environment(plan, site, IMAGE if IN_IMAGE else None)
if IN_IMAGE and not workflow.remote_exec:
    steps.plan_without_apptainer()
if not workflow.remote_exec:
    failures.shorten(logger.handlers)
if not CLUSTER and "mem_mb" not in workflow.global_resources:
    # As many jobs at once as there is memory for, by the same bounds as on a cluster. One that may need more runs alone:
    # Snakemake takes no job to need more than there is.
    workflow.register_resource("mem_mb", free_memory() // 2**20)
if CLUSTER and not workflow.remote_exec:
    slurm_executor.mend(plan.paths.root)
ROOT = str(plan.paths.root)
BENCHMARK = plan.config.benchmark.name


report: "workflow/report/workflow.rst"


wildcard_constraints:
    run=steps.one_of(plan.run_folders),
    seed=r"\d+",


rule all:
    default_target: True
    input:
        f"{ROOT}/report/index.html",


include: "pipeline/workflow/rules/common.smk"
include: "pipeline/workflow/rules/fetch.smk"
include: "pipeline/workflow/rules/own_answers.smk"
include: "pipeline/workflow/rules/data.smk"
include: "pipeline/workflow/rules/train.smk"
include: "pipeline/workflow/rules/alternatives.smk"
include: "pipeline/workflow/rules/reference.smk"
include: "pipeline/workflow/rules/unlearn.smk"
include: "pipeline/workflow/rules/evaluate.smk"
include: "pipeline/workflow/rules/robustness.smk"
include: "pipeline/workflow/rules/judge.smk"
include: "pipeline/workflow/rules/release.smk"
include: "pipeline/workflow/rules/report.smk"


onstart:
    if not workflow.touch:
        steps.hold(plan, CLUSTER)
    # Only now is it known that jobs start: a plan can be made and looked at where neither GPUs, image, Apptainer nor
    # Slurm are.
    # To fetch, to ask a judge and to remove files, none of them is needed.
    elsewhere = [
        job for job in workflow.dag.needrun_jobs() if not job.rule.name.startswith(("fetch", "judge", "release"))
    ]
    if not workflow.touch and any(job.rule.name == "judge_model" for job in workflow.dag.needrun_jobs()):
        steps.require_judge_key(plan)
    if not workflow.touch and any(job.rule.shellcmd for job in elsewhere):
        if IN_IMAGE:
            steps.require_apptainer()
            steps.require_image(IMAGE, site)
        if workflow.local_exec:
            steps.require_gpus(plan)
            if not IN_IMAGE:
                forked_steps.prepare(plan, elsewhere)
        elif CLUSTER:
            steps.require_slurm(site)


onerror:
    if not (workflow.remote_exec or workflow.touch) and {"all", "report"} & {
        rule.name for rule in workflow.dag.targetrules
    }:
        partial_report.write(plan, IMAGE if IN_IMAGE else None)
