# What the rules of steps have in common. None of these three is run: each step's rule is made of one of them by `use rule`,
# and adds what the step reads and writes, and as parameters its program's specification and the digest of its source files.
# A change in these is a reason to run a job again, because they depend on wildcards alone; Snakemake takes no notice of what
# `launch` says. The specification comes through a pipe: no argument of a program may have more than 128 KiB, which that of a
# report of some hundred models has, and `printf` is the shell's own. As input, the 87 source files of a job that loads a
# model would be looked for and compared for each job.


rule step:
    output:
        spec=f"{ROOT}/spec.yaml",
    log:
        f"{ROOT}/logs/step.log",
    container:
        jobs.no_container
    params:
        launch="",
    shell:
        "exec python -m pipeline.launch {output.spec:q} - --log {log:q} {params.launch} < <(printf %s {params.spec:q})"


# `localrule` is not inherited: a rule that runs where Snakemake does, because it may need the internet, says so itself.


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
