"""Starting a step: in this process, on several ranks, in a container, under Slurm; with logs and provenance."""
