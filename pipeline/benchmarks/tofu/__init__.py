"""TOFU (arXiv 2401.06121): fictitious authors, and a generated stand-in."""
