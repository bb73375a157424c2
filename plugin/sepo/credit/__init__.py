"""A benchmark of token-level credit: how well token scores find the tokens that are known to be wrong.

``measures`` computes measures of arrays; ``data`` reads span-labelled pairs; ``scorers`` defines the models that each
scorer needs and the sign of its scores; ``run`` combines them, ``report`` prints the results and ``figure`` plots them.
Importing this package is cheap.
"""
