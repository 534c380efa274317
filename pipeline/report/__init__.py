"""Tables, figures and one self-contained HTML page from evaluations and step logs: ``python -m pipeline.report``."""
