"""What the adapters of all hosts need and no host is imported for: keys, stages, rows, stored scores."""
