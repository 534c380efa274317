"""What a person types: ``python -m pipeline COMMAND``, a file each."""
