"""Arguments shared by several commands."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_recipe(parser: argparse.ArgumentParser, what: str, *, override: str) -> None:
    """Add the arguments for a recipe and its overrides.

    Args:
        parser: the parser of the command.
        what: help text of the recipe.
        override: an example of an override.
    """
    parser.add_argument("recipe", type=Path, help=what)
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help=f"overrides of the recipe, such as {override}"
    )


def add_json_output(parser: argparse.ArgumentParser, what: str) -> None:
    """Add ``--output``, a JSON file that ``what`` is also written to."""
    parser.add_argument("-o", "--output", type=Path, metavar="FILE.json", help=f"also write {what} as JSON")


def add_timing(parser: argparse.ArgumentParser) -> None:
    """Add ``--timing``, which prints the command's seconds of imports and of its own work."""
    parser.add_argument(
        "--timing", action="store_true", help="print the seconds of imports by package and of own work by step"
    )
