"""The task of ``smollm2_methods.py``: its questions, verifier, data sets and recipes."""
