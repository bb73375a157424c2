"""`sepo bench`: speed and memory of sepo's and the host's losses, on the user's machine, model and data."""
