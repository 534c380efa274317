"""A model asked in batches: log-probabilities, greedy continuations, gradient norms."""
