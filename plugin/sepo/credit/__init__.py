"""How well token scores find the tokens that are known to be wrong: a benchmark of token-level credit.

``measures`` is arithmetic on arrays; ``data`` reads span-labelled pairs; ``scorers`` says what each scorer needs and
which way its numbers point; ``run`` puts them together, ``report`` prints and draws. Importing this package is cheap.
"""
