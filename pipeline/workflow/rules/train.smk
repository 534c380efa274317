# The models that unlearning starts from and is compared with: trained here, or published checkpoints.


rule train:
    input:
        expand(f"{ROOT}/models/{{model}}/checkpoint", model=plan.evaluated),


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
    container:
        jobs.container_of_ranks
    threads: jobs.training_threads
    resources:
        **jobs.resources("models/{model}"),
        accelerator=jobs.accelerator,
    params:
        spec=jobs.spec("models/{model}"),
        image=jobs.image_of_ranks,
        launch=jobs.launch,
    message:
        "train: {wildcards.model}"
    shell:
        "exec python -m pipeline.launch {output.spec:q} {params.spec:q} --log {log:q} {params.launch}"
