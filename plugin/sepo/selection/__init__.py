"""Token selection: scores, ratios, units, budgets, and thresholds over a data set."""

SIDES = ("chosen", "rejected")
"""The two responses of a pair, in the order of every batch."""
