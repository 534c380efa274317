# A language model's judgement of the answers, where the experiment asks for one. The endpoint may be on the internet: as
# what fetches, these steps run where Snakemake does, outside any image. An evaluation is never lost by them.
JUDGEMENT = f"{ROOT}/judge/{{model}}/{BENCHMARK}"


rule judge:
    input:
        expand(f"{JUDGEMENT}/judgement.json", model=plan.judged),


use rule step as judge_model with:
    input:
        f"{EVALUATION}/evaluation.json",
        f"{EVALUATION}/examples.jsonl",
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
    params:
        spec=jobs.spec(f"judge/{{model}}/{BENCHMARK}"),
        source=jobs.source(f"judge/{{model}}/{BENCHMARK}"),
    message:
        "judge: {wildcards.model}"
