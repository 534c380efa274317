# The target's log-probability of every sequence of a set, computed once: no method holds a second model for it.
REFERENCE = f"{ROOT}/reference/{{set}}"


rule reference_log_probabilities:
    input:
        jobs.inputs("reference/{set}"),
        source=jobs.source("reference/{set}"),
    output:
        f"{REFERENCE}/reference.npz",
        f"{REFERENCE}/summary.json",
        f"{REFERENCE}/provenance.json",
        spec=f"{REFERENCE}/spec.yaml",
    log:
        f"{ROOT}/logs/reference/{{set}}.log",
    wildcard_constraints:
        set=steps.one_of(plan.reference_names),
    container:
        jobs.container_of_ranks
    threads: jobs.threads
    resources:
        **jobs.resources("reference/{set}"),
        accelerator=jobs.accelerator,
    params:
        spec=jobs.spec("reference/{set}"),
        image=jobs.image_of_ranks,
        launch=jobs.launch,
    message:
        "reference: log-probabilities of {wildcards.set} under target"
    shell:
        "exec python -m pipeline.launch {output.spec:q} {params.spec:q} --log {log:q} {params.launch}"
