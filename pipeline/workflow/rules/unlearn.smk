# Every method of the experiment, with every seed.
RUN = f"{ROOT}/unlearned/{{run}}/seed-{{seed}}"


rule unlearn:
    input:
        # Not the checkpoints, of which some may have been removed.
        expand(f"{RUN}/summary.json", run=plan.run_folders, seed=plan.config.experiment.seeds),


use rule model_step as unlearn_target with:
    input:
        checkpoint=jobs.files("unlearned/{run}/seed-{seed}", "checkpoint"),  # target's, but for later requests to forget
        data=jobs.files("unlearned/{run}/seed-{seed}", "data"),
        references=jobs.files("unlearned/{run}/seed-{seed}", "references"),
    output:
        directory(f"{RUN}/checkpoint"),
        [directory(f"{RUN}/epochs")] if plan.config.experiment.evaluate_every else [],
        f"{RUN}/steps.jsonl",
        f"{RUN}/trajectory.jsonl",
        f"{RUN}/summary.json",
        f"{RUN}/provenance.json",
        spec=f"{RUN}/spec.yaml",
    log:
        f"{ROOT}/logs/unlearned/{{run}}/seed-{{seed}}.log",
    resources:
        **jobs.resources("unlearned/{run}/seed-{seed}"),
        accelerator=jobs.accelerator,
    params:
        spec=jobs.spec("unlearned/{run}/seed-{seed}"),
        source=jobs.source("unlearned/{run}/seed-{seed}"),
    message:
        "unlearn: {wildcards.run}, seed {wildcards.seed}"
