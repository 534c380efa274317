# One table and one page of everything.


rule report:
    input:
        f"{ROOT}/report/index.html",


rule write_report:
    input:
        jobs.inputs("report"),
        source=jobs.source("report"),
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
        report(
            directory(f"{ROOT}/report/figures"),
            patterns=["{figure}.svg"],
            category="Figures",
            labels={"figure": "{figure}"},
            caption="../../../workflow/report/figure.rst",
        ),
        f"{ROOT}/report/summary.json",
        f"{ROOT}/report/provenance.json",
        spec=f"{ROOT}/report/spec.yaml",
    log:
        f"{ROOT}/logs/report.log",
    container:
        jobs.container
    resources:
        **jobs.resources("report"),
    params:
        spec=jobs.spec("report"),
    message:
        f"report: {ROOT}/report/index.html"
    shell:
        "exec python -m pipeline.launch {output.spec:q} {params.spec:q} --log {log:q}"


onsuccess:
    # The table belongs to a run that was asked for the report, not to one that stopped before it.
    if not workflow.touch and {"all", "everything", "report"} & {rule.name for rule in workflow.dag.targetrules}:
        shell(f"python -m pipeline.report --print {shlex.quote(f'{ROOT}/report')}")
