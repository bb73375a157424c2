"""`sepo compare`."""

from __future__ import annotations

import argparse
import os

from sepo.cli.arguments import add_recipe


def add_compare(parser: argparse.ArgumentParser) -> None:
    """Add the arguments and options of `sepo compare`."""
    parser.description = (
        "Train variants of one recipe with several seeds, evaluate all of them on the same held-out pairs, and print "
        "means, intervals and paired differences to a baseline. The same command resumes what was interrupted."
    )
    add_recipe(
        parser,
        "a recipe with shared keys and the sections variants and grid, and base and oracle to train an oracle",
        override="variants.dpo.pref_beta=0.2",
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="check all variants and print the runs, their memory and what they share"
    )


def run_compare(options: argparse.Namespace) -> int:
    """Run the comparison.

    Returns:
        The exit status: 1 if a run failed.

    Raises:
        SepoError: the file or a variant is wrong.
    """
    from sepo.hosts.llamafactory.recipe import load_host, quiet_on_one_device, require_host

    require_host("compare")
    from sepo.hosts.llamafactory.pipeline import read_pipeline

    recipe = read_pipeline(options.recipe, options.overrides)
    environment = dict(os.environ)  # training uses all devices; evaluations in this process use one
    quiet_on_one_device()
    load_host("compare")
    from sepo.hosts.llamafactory.compare import compare

    return compare(recipe, environment=environment, dry_run=options.dry_run)
