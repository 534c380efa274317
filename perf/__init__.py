"""What steps cost on a CPU, one way of doing them against another: ``make bench``, or ``python -m perf.NAME``."""
