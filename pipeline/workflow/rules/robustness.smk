# What is done to every evaluated model, to see whether what it forgot comes back. Their evaluations are in evaluate.smk.
ATTACKED = f"{ROOT}/robustness/{{model}}/{{attack}}"


rule robustness:
    input:
        expand(f"{EVALUATION}/evaluation.json", model=plan.attacked),


rule relearn_model:
    input:
        jobs.inputs("robustness/{model}/{attack}"),
        source=jobs.source("robustness/{model}/{attack}"),
    output:
        directory(f"{ATTACKED}/checkpoint"),
        f"{ATTACKED}/steps.jsonl",
        f"{ATTACKED}/summary.json",
        f"{ATTACKED}/provenance.json",
        spec=f"{ATTACKED}/spec.yaml",
    log:
        f"{ROOT}/logs/robustness/{{model}}/{{attack}}.log",
    wildcard_constraints:
        model=steps.one_of(plan.model_ids),
        attack=steps.one_of(attack.id for attack in plan.config.experiment.robustness.relearned),
    container:
        jobs.container_of_ranks
    threads: jobs.threads
    resources:
        **jobs.resources("robustness/{model}/{attack}"),
        accelerator=jobs.accelerator,
    params:
        spec=jobs.spec("robustness/{model}/{attack}"),
        image=jobs.image_of_ranks,
        launch=jobs.launch,
    message:
        "relearn: {wildcards.model}, {wildcards.attack}"
    shell:
        "exec python -m pipeline.launch {output.spec:q} {params.spec:q} --log {log:q} {params.launch}"


rule quantise_model:
    input:
        jobs.inputs("robustness/{model}/{attack}"),
        source=jobs.source("robustness/{model}/{attack}"),
    output:
        directory(f"{ATTACKED}/checkpoint"),
        f"{ATTACKED}/summary.json",
        f"{ATTACKED}/provenance.json",
        spec=f"{ATTACKED}/spec.yaml",
    log:
        f"{ROOT}/logs/robustness/{{model}}/{{attack}}.log",
    wildcard_constraints:
        model=steps.one_of(plan.model_ids),
        attack=steps.one_of(attack.id for attack in plan.config.experiment.robustness.quantised),
    container:
        jobs.container
    resources:
        **jobs.resources("robustness/{model}/{attack}"),
        accelerator=jobs.accelerator,
    params:
        spec=jobs.spec("robustness/{model}/{attack}"),
    message:
        "quantise: {wildcards.model}, {wildcards.attack}"
    shell:
        "exec python -m pipeline.launch {output.spec:q} {params.spec:q} --log {log:q}"
