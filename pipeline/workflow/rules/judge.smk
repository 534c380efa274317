# A language model's judgement of the answers, where the experiment asks for one. The endpoint may be on the internet: as
# what fetches, these steps run where Snakemake does, outside any image. An evaluation is never lost by them.
JUDGEMENT = f"{ROOT}/judge/{{model}}/{plan.config.benchmark.name}"


rule judge:
    input:
        expand(f"{JUDGEMENT}/judgement.json", model=plan.judged),


rule judge_model:
    input:
        jobs.inputs(f"judge/{{model}}/{plan.config.benchmark.name}"),
        source=jobs.source(f"judge/{{model}}/{plan.config.benchmark.name}"),
    output:
        f"{JUDGEMENT}/judgement.json",
        f"{JUDGEMENT}/judgements.jsonl",
        f"{JUDGEMENT}/summary.json",
        f"{JUDGEMENT}/provenance.json",
        spec=f"{JUDGEMENT}/spec.yaml",
    log:
        f"{ROOT}/logs/judge/{{model}}.log",
    wildcard_constraints:
        model=steps.one_of(plan.judged),
    localrule: True
    container:
        jobs.no_container
    params:
        spec=jobs.spec(f"judge/{{model}}/{plan.config.benchmark.name}"),
    message:
        "judge: {wildcards.model}"
    shell:
        "python -m pipeline.launch {output.spec:q} {params.spec:q} --log {log:q}"
