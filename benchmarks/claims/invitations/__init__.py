"""The task of `benchmarks/claims/smollm2_task.py`: its questions, verifier, data sets, recipes and intervals."""
