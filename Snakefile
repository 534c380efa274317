# From benchmark and model to a report: data -> train -> reference -> unlearn -> evaluate -> report.
#
#   snakemake --profile workflow_configs/profiles/local all --config experiment=NAME data_root=DIR results=DIR
#
# Every option of --config may be left out. `data`, `train`, `unlearn`, `evaluate` and `report` in place of `all` stop
# after that stage. A step is one program with one argument, the spec.yaml in its folder. With
# `--software-deployment-method apptainer --config image=IMAGE`, steps run in that image, which must hold what
# pyproject.toml requires.
import shlex
import sys

from snakemake.utils import min_version

min_version("9.0")
sys.path.insert(0, workflow.basedir)

from pipeline import workflow as steps

steps.use_this_python()
plan = steps.read(config)
jobs = steps.Rules(plan)
ROOT = str(plan.root)


# The image of every step under `--software-deployment-method apptainer`, which needs `--config image=`; else unused.
container: str(config.get("image", "image-not-given.sif"))


localrules:
    all,
    data,
    train,
    unlearn,
    evaluate,
    report,


wildcard_constraints:
    run=steps.one_of(run.id for run in plan.config.runs),
    seed=r"\d+",


rule all:
    default_target: True
    input:
        f"{ROOT}/report/index.html",


include: "pipeline/rules/data.smk"
include: "pipeline/rules/train.smk"
include: "pipeline/rules/reference.smk"
include: "pipeline/rules/unlearn.smk"
include: "pipeline/rules/evaluate.smk"
include: "pipeline/rules/report.smk"


onstart:
    # Only now is it known where jobs run: a plan for GPUs can be made and looked at on a machine without them.
    if workflow.local_exec and not workflow.touch:
        steps.require_gpus(plan)
