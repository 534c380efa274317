"""A language model as judge of answers: what it is asked, how it is reached, and what becomes of its answers."""
