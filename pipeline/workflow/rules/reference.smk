# The log-probability of every sequence of a set under target, computed once: no method holds a second model for it. Of later
# requests to forget, one after the other, under the model that each starts from.
REFERENCE = f"{ROOT}/reference/{{set}}"


use rule model_step as reference_log_probabilities with:
    input:
        checkpoint=jobs.files("reference/{set}", "checkpoint"),  # target's, but for later requests to forget
        data=jobs.files("reference/{set}", "data"),
    output:
        f"{REFERENCE}/reference.npz",
        f"{REFERENCE}/summary.json",
        f"{REFERENCE}/provenance.json",
        spec=f"{REFERENCE}/spec.yaml",
    log:
        f"{ROOT}/logs/reference/{{set}}.log",
    wildcard_constraints:
        set=steps.one_of(plan.reference_names),
    resources:
        **jobs.resources("reference/{set}"),
        accelerator=jobs.accelerator,
    params:
        spec=jobs.spec("reference/{set}"),
        source=jobs.source("reference/{set}"),
    message:
        "reference: log-probabilities of {wildcards.set}"
