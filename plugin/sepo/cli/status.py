"""`sepo status`: print the progress of a run."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_status(parser: argparse.ArgumentParser) -> None:
    """Add the arguments and options of `sepo status`."""
    parser.add_argument("folder", metavar="DIR", help="output_dir of a run, in progress or ended")
    parser.add_argument("--json", action="store_true", help="print as JSON")


def run_status(options: argparse.Namespace) -> int:
    """Print the progress of a run.

    Returns:
        The exit status.

    Raises:
        SepoError: the directory holds no run.
    """
    from sepo.runs.status import status

    status(Path(options.folder), as_json=options.json)
    return 0
