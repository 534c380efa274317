# The models that unlearning starts from and is compared with: trained here, or published checkpoints.


rule train:
    input:
        expand(f"{ROOT}/models/{{model}}/checkpoint", model=plan.evaluated),


rule fetch_model:
    input:
        jobs.inputs("models/{model}"),
        source=jobs.source("models/{model}"),
    output:
        directory(f"{ROOT}/models/{{model}}/checkpoint"),
        f"{ROOT}/models/{{model}}/summary.json",
        f"{ROOT}/models/{{model}}/provenance.json",
        spec=f"{ROOT}/models/{{model}}/spec.yaml",
    log:
        f"{ROOT}/logs/models/{{model}}.log",
    wildcard_constraints:
        model=steps.one_of(plan.fetched),
    params:
        spec=jobs.spec("models/{model}"),
    message:
        "fetch: {wildcards.model}"
    shell:
        "python -m pipeline.launch {output.spec:q} {params.spec:q} > {log:q} 2>&1"


rule train_model:
    input:
        jobs.inputs("models/{model}"),
        source=jobs.source("models/{model}"),
    output:
        directory(f"{ROOT}/models/{{model}}/checkpoint"),
        f"{ROOT}/models/{{model}}/steps.jsonl",
        f"{ROOT}/models/{{model}}/summary.json",
        f"{ROOT}/models/{{model}}/provenance.json",
        spec=f"{ROOT}/models/{{model}}/spec.yaml",
    log:
        f"{ROOT}/logs/models/{{model}}.log",
    wildcard_constraints:
        model=steps.one_of(plan.trained),
    threads: jobs.training_threads(workflow.cores)
    resources:
        accelerator=jobs.accelerator,
    params:
        spec=jobs.spec("models/{model}"),
    message:
        "train: {wildcards.model}"
    shell:
        "python -m pipeline.launch {output.spec:q} {params.spec:q} --threads {threads} > {log:q} 2>&1"
