"""Where token scores come from, and a data set's stored scores as columns of its rows."""
