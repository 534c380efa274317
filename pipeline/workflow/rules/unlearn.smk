# Every method of the experiment, with every seed.
RUN = f"{ROOT}/unlearned/{{run}}/seed-{{seed}}"


rule unlearn:
    input:
        expand(f"{RUN}/checkpoint", run=plan.run_ids, seed=plan.config.experiment.seeds),


rule unlearn_target:
    input:
        jobs.inputs("unlearned/{run}/seed-{seed}"),
        source=jobs.source("unlearned/{run}/seed-{seed}"),
    output:
        directory(f"{RUN}/checkpoint"),
        f"{RUN}/steps.jsonl",
        f"{RUN}/trajectory.jsonl",
        f"{RUN}/summary.json",
        f"{RUN}/provenance.json",
        spec=f"{RUN}/spec.yaml",
    log:
        f"{ROOT}/logs/unlearned/{{run}}/seed-{{seed}}.log",
    container:
        jobs.container_of_ranks
    threads: jobs.threads
    resources:
        **jobs.resources("unlearned/{run}/seed-{seed}"),
        accelerator=jobs.accelerator,
    params:
        spec=jobs.spec("unlearned/{run}/seed-{seed}"),
        image=jobs.image_of_ranks,
        launch=jobs.launch,
    message:
        "unlearn: {wildcards.run}, seed {wildcards.seed}"
    shell:
        "exec python -m pipeline.launch {output.spec:q} {params.spec:q} --log {log:q} {params.launch}"
