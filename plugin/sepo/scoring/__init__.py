"""Sources of token scores, and the stored scores of a data set as columns of its rows."""
