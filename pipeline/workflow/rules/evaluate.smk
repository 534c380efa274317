# Every model on the benchmark; retrain first, because forget quality compares the others with it.
EVALUATION = f"{ROOT}/evaluation/{{model}}/{BENCHMARK}"


rule evaluate:
    input:
        expand(f"{EVALUATION}/evaluation.json", model=plan.evaluated),


use rule model_step as evaluate_model with:
    input:
        checkpoint=jobs.files(f"evaluation/{{model}}/{BENCHMARK}", "checkpoint"),
        tokenizer=f"{DATA}/tokenizer",
        sets=expand(f"{DATA}/evaluation/{{name}}.jsonl", name=plan.evaluation_sets),
        retrain=jobs.files(f"evaluation/{{model}}/{BENCHMARK}", "retrain"),  # retrain's evaluation, where it is compared
        datasets=[f"{DATASETS}/manifest.json"] if plan.fetches_datasets else [],
    output:
        f"{EVALUATION}/evaluation.json",
        f"{EVALUATION}/examples.jsonl",
        f"{EVALUATION}/summary.json",
        f"{EVALUATION}/provenance.json",
        spec=f"{EVALUATION}/spec.yaml",
    log:
        f"{ROOT}/logs/evaluation/{{model}}.log",
    wildcard_constraints:
        model=steps.one_of(plan.evaluated),
    resources:
        **jobs.resources(f"evaluation/{{model}}/{BENCHMARK}"),
        accelerator=jobs.accelerator,
    params:
        spec=jobs.spec(f"evaluation/{{model}}/{BENCHMARK}"),
        source=jobs.source(f"evaluation/{{model}}/{BENCHMARK}"),
    message:
        "evaluate: {wildcards.model}"
