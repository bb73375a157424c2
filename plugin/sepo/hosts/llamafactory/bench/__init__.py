"""`sepo bench`: speed and memory of our stages and of the host's own, on the user's machine, model and data."""
