"""`sepo sample`."""

from __future__ import annotations

import argparse
from pathlib import Path

from sepo.cli.judging import add_judge, judge_request


def add_sample(parser: argparse.ArgumentParser) -> None:
    """Add the arguments and options of `sepo sample`."""
    parser.description = (
        "Generate several responses of a recipe's policy to each prompt of its pairs (eval_dataset, the rows that "
        "val_size splits off, or dataset) and write them as JSON lines, with verdicts if a judge is named. The same "
        "command continues an interrupted run. One process, one device."
    )
    parser.add_argument(
        "recipe",
        metavar="RECIPE.yaml | RUN_DIR",
        help="a recipe for training or evaluation, or the output_dir of a run that recorded its recipe",
    )
    parser.add_argument(
        "overrides",
        nargs="*",
        metavar="key=value",
        help="overrides of the recipe, such as adapter_name_or_path=saves/run or eval_dataset=my_pairs",
    )
    parser.add_argument("--samples", type=int, default=1, metavar="N", help="responses for each prompt (default: 1)")
    parser.add_argument("--prompts", type=int, metavar="N", help="number of prompts, drawn at random (default: all)")
    parser.add_argument(
        "--max-new-tokens", type=int, help="maximum tokens of a response (default: the recipe's, or 256)"
    )
    parser.add_argument(
        "--temperature", type=float, help="sampling temperature, 0 for greedy (default: the recipe's, or 1)"
    )
    parser.add_argument(
        "--top-p",
        type=float,
        help="probability of the tokens that are sampled from (default: the recipe's, or 1)",
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of samples and drawn prompts (default: 0)")
    parser.add_argument("--batch-tokens", type=int, help="tokens per batch; changes no result (default: 8192)")
    add_judge(parser)
    parser.add_argument("-o", "--output", metavar="DIR", help="directory for samples.jsonl (default: sample_output)")


def run_sample(options: argparse.Namespace) -> int:
    """Sample the responses that the options describe.

    Returns:
        The exit status.

    Raises:
        SepoError: the recipe, the data, the model or the request is wrong.
    """
    from sepo.hosts.llamafactory.recipe import load_host, quiet_on_one_device

    quiet_on_one_device()
    load_host("sample")
    from sepo.forward.sequences import DEFAULT_BATCH_TOKENS
    from sepo.hosts.llamafactory.sampled_responses import DEFAULT_FOLDER, SampleRequest, sample

    sample(
        Path(options.recipe),
        options.overrides,
        request=SampleRequest(
            samples=options.samples,
            prompts=options.prompts,
            max_new_tokens=options.max_new_tokens,
            temperature=options.temperature,
            top_p=options.top_p,
            seed=options.seed,
            batch_tokens=DEFAULT_BATCH_TOKENS if options.batch_tokens is None else options.batch_tokens,
            output=DEFAULT_FOLDER if options.output is None else Path(options.output),
            judge=judge_request(options),
        ),
    )
    return 0
