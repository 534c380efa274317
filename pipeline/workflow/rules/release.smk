# Checkpoints that are not kept, once all that reads them is done. They are outputs that nobody misses: Snakemake makes a
# file that only its maker's other readers need again where one of those has to run again, and else leaves it be.
KEPT = f"{ROOT}/kept/{{kept}}"


use rule step as release_checkpoints with:
    input:
        readers=jobs.files("kept/{kept}", "readers"),
    output:
        f"{KEPT}/ready.json",
        f"{KEPT}/summary.json",
        f"{KEPT}/provenance.json",
        spec=f"{KEPT}/spec.yaml",
    log:
        f"{ROOT}/logs/kept/{{kept}}.log",
    wildcard_constraints:
        kept=steps.one_of(plan.released),
    localrule: True
    params:
        spec=jobs.spec("kept/{kept}"),
        source=jobs.source("kept/{kept}"),
    message:
        "release: {wildcards.kept}"
