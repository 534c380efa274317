# Target's own answers to general prompts, sampled before data are prepared: they stand in for what is to be kept.
OWN_ANSWERS = f"{ROOT}/own_answers/{{set}}"


use rule model_step as sample_own_answers with:
    input:
        checkpoint=jobs.files("own_answers/{set}", "checkpoint"),
        prompts=jobs.files("own_answers/{set}", "prompts"),
    output:
        f"{OWN_ANSWERS}/answers.jsonl",
        f"{OWN_ANSWERS}/summary.json",
        f"{OWN_ANSWERS}/provenance.json",
        spec=f"{OWN_ANSWERS}/spec.yaml",
    log:
        f"{ROOT}/logs/own_answers/{{set}}.log",
    wildcard_constraints:
        set=steps.one_of(plan.own_answers_names),
    resources:
        **jobs.resources("own_answers/{set}"),
        accelerator=jobs.accelerator,
    params:
        spec=jobs.spec("own_answers/{set}"),
        source=jobs.source("own_answers/{set}"),
    message:
        "own answers: target answers the general prompts of {wildcards.set}"
