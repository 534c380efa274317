"""MUSE (arXiv 2407.06460): news and books, and a generated stand-in."""
