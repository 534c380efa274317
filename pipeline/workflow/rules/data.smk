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
