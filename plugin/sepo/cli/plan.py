"""`sepo plan`."""

from __future__ import annotations

import argparse
import contextlib

from sepo.cli.arguments import add_json_output, add_recipe, add_timing
from sepo.timing import Timing


def add_plan(parser: argparse.ArgumentParser) -> None:
    """Add the arguments and options of `sepo plan`."""
    parser.description = (
        "Compute the memory that a recipe needs from the models' configurations alone: weights, adapters, gradients, "
        "optimizer, activations, head, reference and scoring models, phase by phase; whether it fits, and which "
        "changes would make it fit. For a recipe with keys of sepo pairs, also of sampling and judging; for stage rto, "
        "of sampling, of scoring and judging, and of training, with all models in memory."
    )
    add_recipe(parser, "a recipe of one of sepo's stages, or of sepo pairs", override="quantization_bit=4")
    parser.add_argument("--gpu", metavar="SIZE", help="memory of a device, such as 24GiB (default: this machine's)")
    parser.add_argument(
        "--processes", type=int, help="number of training processes (default: NPROC_PER_NODE x NNODES, or 1)"
    )
    parser.add_argument(
        "--tokens",
        type=int,
        help="tokens of the longest device batch, each prompt counted once (default: the most that cutoff_len allows)",
    )
    add_json_output(parser, "the plan")
    add_timing(parser)


def run_plan(options: argparse.Namespace) -> int:
    """Print the memory plan.

    Returns:
        The exit status.

    Raises:
        SepoError: the recipe or an option is wrong.
    """
    timing = Timing()
    with timing.watching_imports() if options.timing else contextlib.nullcontext():
        from sepo.hosts.llamafactory.recipe import load_host, quiet_on_one_device

        quiet_on_one_device()
        load_host("plan", "llamafactory.hparams")
        from sepo.hosts.llamafactory.plan.run import plan

        plan(
            options.recipe,
            options.overrides,
            gpu=options.gpu,
            processes=options.processes,
            tokens=options.tokens,
            output=options.output,
            timing=timing,
        )
    if options.timing:
        print(*timing.lines(), sep="\n")
    return 0
