# Other answers to the forget set's prompts, which target samples once, for methods that prefer them.
ALTERNATIVES = f"{ROOT}/alternatives/{{set}}"


use rule model_step as sample_alternatives with:
    input:
        checkpoint=jobs.files("alternatives/{set}", "checkpoint"),
        data=jobs.files("alternatives/{set}", "data"),
    output:
        f"{ALTERNATIVES}/alternatives.npz",
        f"{ALTERNATIVES}/summary.json",
        f"{ALTERNATIVES}/provenance.json",
        spec=f"{ALTERNATIVES}/spec.yaml",
    log:
        f"{ROOT}/logs/alternatives/{{set}}.log",
    wildcard_constraints:
        set=steps.one_of(plan.alternatives_names),
    resources:
        **jobs.resources("alternatives/{set}"),
        accelerator=jobs.accelerator,
    params:
        spec=jobs.spec("alternatives/{set}"),
        source=jobs.source("alternatives/{set}"),
    message:
        "alternatives: other answers to {wildcards.set}, sampled by target"
