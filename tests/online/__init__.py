import llamafactory.extras.packages  # noqa: F401 (it makes TRL 0.24 importable beside transformers 5)
