"""`sepo pairs`."""

from __future__ import annotations

import argparse
import os

from sepo.cli.arguments import add_recipe


def add_pairs(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `sepo pairs`."""
    parser.description = (
        "Sample responses of a recipe's policy to its prompts, judge them, and write the best against the worst of "
        "each prompt as a ranking data set. The same command continues an interrupted run. With several processes: "
        "torchrun --nproc_per_node N -m sepo pairs RECIPE."
    )
    add_recipe(
        parser,
        "a recipe with model, prompts (dataset or pairs_prompts) and judge",
        override="pairs_samples=8 adapter_name_or_path=saves/run",
    )


def run_pairs(options: argparse.Namespace) -> int:
    """Make the pairs.

    Returns:
        The exit status.

    Raises:
        SepoError: the recipe, the data or a model is wrong, or no prompt has a pair.
    """
    from sepo.hosts.llamafactory.recipe import load_host, quiet_on_one_device

    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        os.environ.setdefault("LLAMAFACTORY_VERBOSITY", "ERROR")
    else:
        quiet_on_one_device()
    load_host("pairs")
    import torch.distributed as dist

    from sepo.hosts.llamafactory.pipeline import read_pipeline
    from sepo.hosts.llamafactory.sampled_pairs import make_pairs

    try:
        make_pairs(read_pipeline(options.recipe, options.overrides), file=options.recipe)
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()
    return 0
