"""The `sepo` command."""

from sepo.cli.main import main

__all__ = ["main"]
