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
    threads: jobs.threads
    resources:
        accelerator=jobs.accelerator,
    params:
        spec=jobs.spec(f"evaluation/{{model}}/{plan.config.benchmark.name}"),
    message:
        "evaluate: {wildcards.model}"
    shell:
        "python -m pipeline.launch {output.spec:q} {params.spec:q} --threads {threads} > {log:q} 2>&1"
