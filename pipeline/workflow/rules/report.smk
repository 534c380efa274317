# One table and one page of everything.


rule report:
    input:
        f"{ROOT}/report/index.html",


use rule image_step as write_report with:
    input:
        # Of every model: its evaluation, the step that made it and its logs, and the judgement where there is one.
        evaluations=expand(
            f"{EVALUATION}/{{file}}",
            model=plan.evaluated,
            file=["evaluation.json", "examples.jsonl", "summary.json", "provenance.json"],
        ),
        utility=jobs.files("report", "utility"),
        runs=jobs.files("report", "runs"),
        logs=jobs.files("report", "logs"),
        judgements=expand(
            f"{JUDGEMENT}/{{file}}", model=plan.judged, file=["judgement.json", "summary.json", "provenance.json"]
        ),
        others=jobs.files("report", "steps"),
        released=jobs.files("report", "released"),  # model cards go to the checkpoints that stay
    output:
        report(
            f"{ROOT}/report/index.html",
            category="Report",
            labels={"what": "page"},
            caption="../../../workflow/report/page.rst",
        ),
        report(
            f"{ROOT}/report/table.csv",
            category="Report",
            labels={"what": "table"},
            caption="../../../workflow/report/table.rst",
        ),
        f"{ROOT}/report/table.md",
        f"{ROOT}/report/table.tex",
        f"{ROOT}/report/evidence.json",
        report(
            directory(f"{ROOT}/report/figures"),
            patterns=["{figure}.svg"],
            category="Figures",
            labels={"figure": "{figure}"},
            caption="../../../workflow/report/figure.rst",
        ),
        directory(f"{ROOT}/report/examples"),
        f"{ROOT}/report/summary.json",
        f"{ROOT}/report/provenance.json",
        spec=f"{ROOT}/report/spec.yaml",
    log:
        f"{ROOT}/logs/report.log",
    resources:
        **jobs.resources("report"),
    params:
        spec=jobs.spec("report"),
        source=jobs.source("report"),
    message:
        f"report: {steps.literal(ROOT)}/report/index.html"


onsuccess:
    # The table belongs to a run that was asked for the report, not to one that stopped before it.
    if not workflow.touch and {"all", "everything", "report"} & {rule.name for rule in workflow.dag.targetrules}:
        partial_report.remove(plan)
        shell(f"python -m pipeline.report --print {steps.literal(shlex.quote(ROOT))}/report")
