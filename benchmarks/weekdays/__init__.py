"""The world of `benchmarks/pairs_and_rto.py`: its questions, model, data sets, recipes and commands."""
