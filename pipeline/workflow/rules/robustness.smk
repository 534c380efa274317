# What is done to every evaluated model, to see whether what it forgot comes back. Their evaluations are in evaluate.smk.
ATTACKED = f"{ROOT}/robustness/{{model}}/{{attack}}"


rule robustness:
    input:
        expand(f"{EVALUATION}/evaluation.json", model=plan.attacked),


use rule model_step as relearn_model with:
    input:
        checkpoint=lambda wildcards: plan.paths.checkpoint(jobs.model(wildcards.model)),
        data=jobs.files("robustness/{model}/{attack}", "data"),  # the forget set of every topic
    output:
        directory(f"{ATTACKED}/checkpoint"),
        f"{ATTACKED}/steps.jsonl",
        f"{ATTACKED}/summary.json",
        f"{ATTACKED}/provenance.json",
        spec=f"{ATTACKED}/spec.yaml",
    log:
        f"{ROOT}/logs/robustness/{{model}}/{{attack}}.log",
    wildcard_constraints:
        model=steps.one_of(plan.evaluated),
        attack=steps.one_of(attack.id for attack in plan.config.experiment.robustness.relearned),
    resources:
        **jobs.resources("robustness/{model}/{attack}"),
        accelerator=jobs.accelerator,
    params:
        spec=jobs.spec("robustness/{model}/{attack}"),
        source=jobs.source("robustness/{model}/{attack}"),
    message:
        "relearn: {wildcards.model}, {wildcards.attack}"


use rule image_step as quantise_model with:
    input:
        checkpoint=lambda wildcards: plan.paths.checkpoint(jobs.model(wildcards.model)),
    output:
        directory(f"{ATTACKED}/checkpoint"),
        f"{ATTACKED}/summary.json",
        f"{ATTACKED}/provenance.json",
        spec=f"{ATTACKED}/spec.yaml",
    log:
        f"{ROOT}/logs/robustness/{{model}}/{{attack}}.log",
    wildcard_constraints:
        model=steps.one_of(plan.evaluated),
        attack=steps.one_of(attack.id for attack in plan.config.experiment.robustness.quantised),
    resources:
        **jobs.resources("robustness/{model}/{attack}"),
        accelerator=jobs.accelerator,
    params:
        spec=jobs.spec("robustness/{model}/{attack}"),
        source=jobs.source("robustness/{model}/{attack}"),
    message:
        "quantise: {wildcards.model}, {wildcards.attack}"
