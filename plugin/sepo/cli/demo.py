"""`sepo demo`."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_demo(parser: argparse.ArgumentParser) -> None:
    """Add the options of `sepo demo`."""
    parser.add_argument("-o", "--output", default="demo_output", help="folder for everything that it makes")


def run_demo(options: argparse.Namespace) -> int:
    """Run the demonstration.

    Returns:
        The exit status.

    Raises:
        SepoError: its model or the host is not installed, or the directory holds something else.
    """
    from sepo.demo import run

    run.run_demo(Path(options.output))
    return 0
