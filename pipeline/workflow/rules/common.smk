# What the rules of steps have in common. None of these four is run: each step's rule is made of one of them by `use rule`,
# and says what the step reads and writes. The program's specification is a parameter: a change in it, and only that, is a
# reason to run a job again.


rule step:
    output:
        spec=f"{ROOT}/spec.yaml",
    log:
        f"{ROOT}/logs/step.log",
    container:
        jobs.no_container
    params:
        spec=jobs.spec,
        launch="",
    shell:
        "exec python -m pipeline.launch {output.spec:q} {params.spec:q} --log {log:q} {params.launch}"


# Where Snakemake itself runs: what may need the internet.
use rule step as local_step with:
    localrule: True


# In the image, without a model.
use rule step as image_step with:
    container:
        jobs.container


# On all ranks of the experiment's layout.
use rule step as model_step with:
    container:
        jobs.container_of_ranks
    threads: jobs.threads
    params:
        image=jobs.image_of_ranks,
        launch=jobs.launch,
