# Every model on the benchmark; retrain first, because forget quality compares the others with it.
EVALUATION = f"{ROOT}/evaluation/{{model}}/{plan.config.benchmark.name}"


rule evaluate:
    input:
        expand(f"{EVALUATION}/evaluation.json", model=plan.model_ids),


rule evaluate_model:
    input:
        jobs.inputs(f"evaluation/{{model}}/{plan.config.benchmark.name}"),
        source=jobs.source(f"evaluation/{{model}}/{plan.config.benchmark.name}"),
    output:
        f"{EVALUATION}/evaluation.json",
        f"{EVALUATION}/examples.jsonl",
        f"{EVALUATION}/summary.json",
        f"{EVALUATION}/provenance.json",
        spec=f"{EVALUATION}/spec.yaml",
    log:
        f"{ROOT}/logs/evaluation/{{model}}.log",
    wildcard_constraints:
        model=steps.one_of(plan.model_ids),
    container:
        jobs.container_of_ranks
    threads: jobs.threads
    resources:
        **jobs.resources(f"evaluation/{{model}}/{plan.config.benchmark.name}"),
        accelerator=jobs.accelerator,
    params:
        spec=jobs.spec(f"evaluation/{{model}}/{plan.config.benchmark.name}"),
        image=jobs.image_of_ranks,
        launch=jobs.launch,
    message:
        "evaluate: {wildcards.model}"
    shell:
        "exec python -m pipeline.launch {output.spec:q} {params.spec:q} --log {log:q} {params.launch}"
