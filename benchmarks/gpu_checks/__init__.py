"""The checks of `benchmarks/gpu_check.py`, by what they check."""
