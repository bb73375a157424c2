"""`sepo bench`."""

from __future__ import annotations

import argparse

from sepo.cli.arguments import add_json_output, add_recipe


def add_bench(parser: argparse.ArgumentParser) -> None:
    """Add the arguments and options of `sepo bench`."""
    parser.description = (
        "Measure pairs and tokens per second and peak memory of sepo's stages and of LLaMA-Factory's dpo and simpo, "
        "with the model, data and training settings of this recipe. Nothing is trained, scored or saved."
    )
    add_recipe(
        parser, "a recipe of one of sepo's stages, or of the host's dpo", override="per_device_train_batch_size=4"
    )
    parser.add_argument(
        "--rounds", type=int, default=5, help="number of timed rounds, each with another batch (default: 5)"
    )
    parser.add_argument(
        "--stages",
        help="a comma-separated subset of host_dpo, host_simpo, sepo, dpo, simpo, selective_dpo, minor_dpo and treg, "
        "or recipe: the recipe's own method, if it is none of these",
    )
    parser.add_argument("--no-memory", dest="memory", action="store_false", help="do not measure peak memory")
    add_json_output(parser, "all results")


def run_bench(options: argparse.Namespace) -> int:
    """Run the benchmark and print its results.

    Returns:
        The exit status.

    Raises:
        SepoError: the recipe or an option is wrong.
    """
    from sepo.hosts.llamafactory.recipe import load_host, quiet_on_one_device

    quiet_on_one_device()
    load_host("bench")
    from sepo.hosts.llamafactory.bench.run import bench

    bench(
        options.recipe,
        options.overrides,
        rounds=options.rounds,
        names=None if options.stages is None else [name.strip() for name in options.stages.split(",")],
        memory=options.memory,
        output=options.output,
    )
    return 0
