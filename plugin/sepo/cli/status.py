"""`sepo status`: print the progress of a run, of pairs, or of a pipeline."""

from __future__ import annotations

import argparse
import json
from pathlib import Path


def add_status(parser: argparse.ArgumentParser) -> None:
    """Add the arguments and options of `sepo status`."""
    parser.add_argument(
        "folder", metavar="DIR", help="output_dir of a run or a pipeline, or a directory of pairs, in progress or ended"
    )
    parser.add_argument("--json", action="store_true", help="print as JSON")


def run_status(options: argparse.Namespace) -> int:
    """Print the progress of a run, of pairs, or of a pipeline.

    Returns:
        The exit status.

    Raises:
        SepoError: the directory holds none of them, or a file cannot be read.
    """
    from sepo.hosts.llamafactory.chain_status import is_pipeline, pipeline_lines, pipeline_progress
    from sepo.pairs.status import is_pairs, pairs_lines, pairs_progress
    from sepo.runs.status import plain_values, status

    folder = Path(options.folder)
    if is_pairs(folder):
        found, lines = pairs_progress(folder), pairs_lines
    elif is_pipeline(folder):
        found, lines = pipeline_progress(folder), pipeline_lines
    else:
        status(folder, as_json=options.json)
        return 0
    print(json.dumps(plain_values(found), indent=1, allow_nan=False) if options.json else "\n".join(lines(found)))
    return 0
