# Benchmark text to tokenised splits.
DATA = str(plan.paths.data)


rule data:
    input:
        f"{DATA}/manifest.json",


use rule image_step as prepare with:
    input:
        files=(
            [f"{SOURCE}/files", f"{SOURCE}/manifest.json"]
            if plan.fetches_data
            else jobs.files(f"data/{BENCHMARK}", "files")
        ),
        answers=jobs.files(f"data/{BENCHMARK}", "answers"),
        tokenizer=jobs.files(f"data/{BENCHMARK}", "tokenizer"),
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
    resources:
        **jobs.resources(f"data/{BENCHMARK}"),
    params:
        spec=jobs.spec(f"data/{BENCHMARK}"),
        source=jobs.source(f"data/{BENCHMARK}"),
    message:
        f"data: {steps.literal(plan.config.benchmark.title)}, {steps.literal(plan.config.experiment.split)}"


# What prepares the questions of a further benchmark, with the tokenizer of the experiment's own.
use rule image_step as prepare_utility with:
    input:
        files=jobs.files("data/{utility}", "files"),
        tokenizer=f"{DATA}/tokenizer",
    output:
        directory(f"{ROOT}/data/{{utility}}/evaluation"),
        directory(f"{ROOT}/data/{{utility}}/tokenizer"),
        f"{ROOT}/data/{{utility}}/manifest.json",
        f"{ROOT}/data/{{utility}}/summary.json",
        f"{ROOT}/data/{{utility}}/provenance.json",
        spec=f"{ROOT}/data/{{utility}}/spec.yaml",
    log:
        f"{ROOT}/logs/data/{{utility}}.log",
    wildcard_constraints:
        utility=steps.one_of(plan.utility),
    resources:
        **jobs.resources("data/{utility}"),
    params:
        spec=jobs.spec("data/{utility}"),
        source=jobs.source("data/{utility}"),
    message:
        "data: {wildcards.utility}"
