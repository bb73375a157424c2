"""Memory estimates of a run from the shapes of its tensors, without loading weights and without a GPU."""
