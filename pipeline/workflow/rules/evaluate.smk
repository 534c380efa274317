# Every model on the benchmark; retrain first, because forget quality compares the others with it. And what an experiment
# names as its utility: the same step on further benchmarks.
EVALUATION = f"{ROOT}/evaluation/{{model}}/{BENCHMARK}"
ASKED = expand(f"{ROOT}/evaluation/{{model}}/{{benchmark}}", model=plan.asked, benchmark=plan.utility)
MEASURED = "evaluation/{model}/{benchmark}"


rule evaluate:
    input:
        expand(f"{EVALUATION}/evaluation.json", model=plan.evaluated),
        expand("{folder}/evaluation.json", folder=ASKED),


use rule model_step as evaluate_model with:
    input:
        checkpoint=jobs.files(MEASURED, "checkpoint"),
        tokenizer=jobs.files(MEASURED, "tokenizer"),
        sets=jobs.files(MEASURED, "sets"),
        retrain=jobs.files(MEASURED, "retrain"),  # retrain's evaluation, where it is compared
        tasks=jobs.files(MEASURED, "tasks"),
        datasets=jobs.files(MEASURED, "datasets"),
    output:
        f"{ROOT}/{MEASURED}/evaluation.json",
        f"{ROOT}/{MEASURED}/examples.jsonl",
        f"{ROOT}/{MEASURED}/summary.json",
        f"{ROOT}/{MEASURED}/provenance.json",
        spec=f"{ROOT}/{MEASURED}/spec.yaml",
    log:
        f"{ROOT}/logs/{MEASURED}.log",
    wildcard_constraints:
        model=steps.one_of(plan.evaluated),
        benchmark=steps.one_of([BENCHMARK, *plan.utility]),
    resources:
        **jobs.resources(MEASURED),
        accelerator=jobs.accelerator,
    params:
        spec=jobs.spec(MEASURED),
        source=jobs.source(MEASURED),
    message:
        "evaluate: {wildcards.model}, {wildcards.benchmark}"
