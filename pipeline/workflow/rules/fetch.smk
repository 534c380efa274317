# The only steps that may need the internet. They run where Snakemake does, outside any image.
SOURCE = str(plan.paths.source)
DATASETS = str(plan.paths.datasets)


rule fetch:
    input:
        expand(f"{ROOT}/models/{{model}}/checkpoint", model=plan.fetched),
        [f"{SOURCE}/manifest.json"] if plan.fetches_data else [],
        [f"{DATASETS}/manifest.json"] if plan.fetches_datasets else [],


use rule step as fetch_data with:
    output:
        directory(f"{SOURCE}/files"),
        f"{SOURCE}/manifest.json",
        f"{SOURCE}/summary.json",
        f"{SOURCE}/provenance.json",
        spec=f"{SOURCE}/spec.yaml",
    log:
        f"{ROOT}/logs/source.log",
    localrule: True
    params:
        spec=jobs.spec(f"source/{BENCHMARK}"),
        source=jobs.source(f"source/{BENCHMARK}"),
    message:
        f"fetch: {steps.literal(plan.config.benchmark.title)}"


use rule step as fetch_datasets with:
    output:
        f"{DATASETS}/manifest.json",
        f"{DATASETS}/summary.json",
        f"{DATASETS}/provenance.json",
        spec=f"{DATASETS}/spec.yaml",
    log:
        f"{ROOT}/logs/datasets.log",
    localrule: True
    params:
        spec=jobs.spec("datasets"),
        source=jobs.source("datasets"),
    message:
        "fetch: data sets of tasks"


use rule step as fetch_model with:
    input:
        folder=jobs.files("models/{model}", "files"),
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
    params:
        spec=jobs.spec("models/{model}"),
        source=jobs.source("models/{model}"),
    message:
        "fetch: {wildcards.model}"
