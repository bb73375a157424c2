"""A recipe's keys, resolved into one RunSettings before a model is loaded."""
