"""Which tokens count: scores, ratios, units, budgets, and the threshold of a data set."""

SIDES = ("chosen", "rejected")
"""The two responses of a pair, in the order in which every batch has them."""
