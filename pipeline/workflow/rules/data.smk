# Benchmark text to tokenised splits.
DATA = str(plan.data)


rule data:
    input:
        f"{DATA}/manifest.json",


rule prepare:
    input:
        jobs.inputs(f"data/{plan.config.benchmark.name}"),
        source=jobs.source(f"data/{plan.config.benchmark.name}"),
    output:
        expand(f"{DATA}/train/{{name}}.npz", name=plan.tokenised_sets),
        expand(f"{DATA}/evaluation/{{name}}.jsonl", name=plan.evaluation_sets),
        directory(f"{DATA}/tokenizer"),
        f"{DATA}/manifest.json",
        f"{DATA}/summary.json",
        f"{DATA}/provenance.json",
        spec=f"{DATA}/spec.yaml",
    log:
        f"{ROOT}/logs/data.log",
    container:
        jobs.container
    resources:
        **jobs.resources(f"data/{plan.config.benchmark.name}"),
    params:
        spec=jobs.spec(f"data/{plan.config.benchmark.name}"),
    message:
        f"data: {plan.config.benchmark.title}, {plan.config.experiment.split}"
    shell:
        "exec python -m pipeline.launch {output.spec:q} {params.spec:q} --log {log:q}"
