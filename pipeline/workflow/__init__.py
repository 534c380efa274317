"""The jobs of an experiment, what each needs, and the Snakemake rules that run them."""
