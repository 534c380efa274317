"""What users write, read and checked: experiments, methods, models, benchmarks and a cluster's site file."""
