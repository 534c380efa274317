# The models that unlearning starts from and is compared with: trained here, or published checkpoints.


rule train:
    input:
        expand(f"{ROOT}/models/{{model}}/checkpoint", model=plan.compared),


use rule model_step as train_model with:
    input:
        # A model that starts from random weights needs only the tokenizer.
        start=lambda wildcards: (
            f"{ROOT}/models/base/checkpoint" if plan.has_base and wildcards.model != "base" else f"{DATA}/tokenizer"
        ),
        data=jobs.files("models/{model}", "data"),
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
    threads: jobs.training_threads
    resources:
        **jobs.resources("models/{model}"),
        accelerator=jobs.accelerator,
    params:
        spec=jobs.spec("models/{model}"),
        source=jobs.source("models/{model}"),
    message:
        "train: {wildcards.model}"
