# The target's log-probability of every forget sequence, computed once: no method holds a second model.


rule reference_log_probabilities:
    input:
        jobs.inputs("reference"),
        source=jobs.source("reference"),
    output:
        str(plan.reference),
        f"{ROOT}/reference/summary.json",
        f"{ROOT}/reference/provenance.json",
        spec=f"{ROOT}/reference/spec.yaml",
    log:
        f"{ROOT}/logs/reference.log",
    threads: jobs.threads
    resources:
        accelerator=jobs.accelerator,
    params:
        spec=jobs.spec("reference"),
    message:
        "reference: log-probabilities of the forget set under target"
    shell:
        "python -m pipeline.launch {output.spec:q} {params.spec:q} --threads {threads} > {log:q} 2>&1"
