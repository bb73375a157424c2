"""Arguments that several commands have."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_recipe(parser: argparse.ArgumentParser, what: str, *, override: str) -> None:
    """Add a recipe and its overrides.

    Args:
        parser: the command's.
        what: help for the recipe.
        override: an example of an override.
    """
    parser.add_argument("recipe", type=Path, help=what)
    parser.add_argument("overrides", nargs="*", metavar="key=value", help=f"such as {override}")


def add_json_output(parser: argparse.ArgumentParser, what: str) -> None:
    """Add ``--output``, a JSON file that gets ``what`` too."""
    parser.add_argument("-o", "--output", type=Path, metavar="FILE.json", help=f"also write {what} as JSON")
