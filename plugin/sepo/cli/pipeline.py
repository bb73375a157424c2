"""`sepo pipeline`."""

from __future__ import annotations

import argparse

from sepo.cli.arguments import add_recipe


def add_pipeline(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `sepo pipeline`."""
    add_recipe(
        parser, "a recipe with shared keys and the sections base, oracle and policy", override="policy.sepo_gamma=2"
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="check all steps and print them with their state and memory"
    )


def run_pipeline(options: argparse.Namespace) -> int:
    """Train base and oracle, score, and train the policy, or print the steps.

    Returns:
        The exit status.

    Raises:
        SepoError: the recipe is wrong.
    """
    from sepo.hosts.llamafactory.recipe import load_host, require_host

    require_host("pipeline")
    from sepo.hosts.llamafactory import pipeline

    recipe = pipeline.read_pipeline(options.recipe, options.overrides)
    load_host("pipeline")
    if options.dry_run:
        from sepo.hosts.llamafactory.plan.steps import print_steps

        print_steps(recipe)
    else:
        pipeline.run_pipeline(recipe)
    return 0
