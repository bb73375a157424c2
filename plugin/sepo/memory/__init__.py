"""How much memory a run needs, from the shapes of its tensors: no weights are loaded and no GPU is asked."""
