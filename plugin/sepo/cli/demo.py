"""`sepo demo`."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_demo(parser: argparse.ArgumentParser) -> None:
    """Add the options of `sepo demo`."""
    parser.add_argument("-o", "--output", default="demo_output", help="directory for data, models and results")


def run_demo(options: argparse.Namespace) -> int:
    """Run the demonstration.

    Returns:
        The exit status.

    Raises:
        SepoError: the model or the host is not installed, or the directory holds other files.
    """
    from sepo.hosts.llamafactory import demo

    demo.run_demo(Path(options.output))
    return 0
