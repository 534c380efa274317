"""Tokenised sequences, their batches, and what was computed of them before."""
