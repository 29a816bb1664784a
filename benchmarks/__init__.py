"""Time and memory of lens_attr: ``python -m benchmarks``."""
