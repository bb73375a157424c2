"""Which tokens count: scores, ratios, units, budgets, and the threshold of a data set."""
