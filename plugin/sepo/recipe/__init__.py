"""Resolution of a recipe's keys into one RunSettings before a model is loaded."""
