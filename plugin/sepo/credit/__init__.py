"""A benchmark of token-level credit: how well token scores find the tokens that are known to be wrong.

``measures`` computes measures of arrays; ``data`` reads span-labelled pairs; ``scorers`` defines the models that each
scorer needs and the sign of its scores; ``units`` groups tokens to spans and steps; ``scored`` computes scores, ``run``
evaluates them, ``report`` prints the results, ``figure`` plots them and ``leaderboard`` keeps them; ``sets`` reads
public data sets. Importing this package is cheap.
"""
