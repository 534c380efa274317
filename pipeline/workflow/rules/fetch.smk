# The only steps that may need the internet. They run where Snakemake does, outside any image.
SOURCE = f"{ROOT}/source/{plan.config.benchmark.name}"


rule fetch:
    input:
        expand(f"{ROOT}/models/{{model}}/checkpoint", model=plan.fetched),
        [f"{SOURCE}/manifest.json"] if plan.fetches_data else [],
        [plan.datasets] if plan.datasets else [],


rule fetch_data:
    input:
        jobs.inputs(f"source/{plan.config.benchmark.name}"),
        source=jobs.source(f"source/{plan.config.benchmark.name}"),
    output:
        directory(f"{SOURCE}/files"),
        f"{SOURCE}/manifest.json",
        f"{SOURCE}/summary.json",
        f"{SOURCE}/provenance.json",
        spec=f"{SOURCE}/spec.yaml",
    log:
        f"{ROOT}/logs/source.log",
    localrule: True
    container:
        jobs.no_container
    params:
        spec=jobs.spec(f"source/{plan.config.benchmark.name}"),
    message:
        f"fetch: {plan.config.benchmark.title}"
    shell:
        "python -m pipeline.launch {output.spec:q} {params.spec:q} --log {log:q}"


rule fetch_datasets:
    input:
        jobs.inputs("datasets"),
        source=jobs.source("datasets"),
    output:
        f"{ROOT}/datasets/manifest.json",
        f"{ROOT}/datasets/summary.json",
        f"{ROOT}/datasets/provenance.json",
        spec=f"{ROOT}/datasets/spec.yaml",
    log:
        f"{ROOT}/logs/datasets.log",
    localrule: True
    container:
        jobs.no_container
    params:
        spec=jobs.spec("datasets"),
    message:
        "fetch: data sets of tasks"
    shell:
        "python -m pipeline.launch {output.spec:q} {params.spec:q} --log {log:q}"


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
    localrule: True
    container:
        jobs.no_container
    params:
        spec=jobs.spec("models/{model}"),
    message:
        "fetch: {wildcards.model}"
    shell:
        "python -m pipeline.launch {output.spec:q} {params.spec:q} --log {log:q}"
