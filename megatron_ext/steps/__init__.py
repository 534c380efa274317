"""The programs of this package, one argument each: train, unlearn, reference, quantise."""
