"""What unlearning steps cost on a CPU, one against another: ``make bench``, or ``python -m benchmarks.NAME``."""
