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
        set=steps.one_of(plan.references),
    threads: jobs.threads
    resources:
        accelerator=jobs.accelerator,
    params:
        spec=jobs.spec("reference/{set}"),
    message:
        "reference: log-probabilities of {wildcards.set} under target"
    shell:
        "python -m pipeline.launch {output.spec:q} {params.spec:q} --threads {threads} > {log:q} 2>&1"
