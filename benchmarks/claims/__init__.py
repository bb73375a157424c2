"""Claims about token selection, tested in a small world in which it is known which tokens are wrong."""
