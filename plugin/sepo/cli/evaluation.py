"""`sepo eval`."""

from __future__ import annotations

import argparse
from pathlib import Path

from sepo.cli.judging import add_judge, judge_request


def add_eval(parser: argparse.ArgumentParser) -> None:
    """Add the arguments and options of `sepo eval`."""
    parser.description = (
        "Measure a policy on held-out pairs: preference accuracy and margins, the KL from its reference, and, for "
        "answers that it generates, length, distinct n-grams, repetition and truncation; the answers are also written "
        "in the formats of AlpacaEval 2, Arena-Hard and MT-Bench. --judge counts the answers that are right. One "
        "process, one device."
    )
    parser.add_argument(
        "recipe",
        metavar="RECIPE.yaml | RUN_DIR",
        help="a recipe for training or evaluation (model_name_or_path, template, eval_dataset or dataset, ...), or the "
        "output_dir of a run that recorded its recipe",
    )
    parser.add_argument(
        "overrides",
        nargs="*",
        metavar="key=value",
        help="overrides of the recipe, such as adapter_name_or_path=saves/run or max_samples=500",
    )
    parser.add_argument(
        "--before", action="store_true", help="also measure the policy before training (its adapter disabled)"
    )
    parser.add_argument(
        "--generate",
        type=int,
        default=0,
        metavar="N",
        help="generate answers to N prompts of the held-out pairs (default: 0)",
    )
    parser.add_argument(
        "--questions",
        action="append",
        default=[],
        metavar="FILE",
        help="also answer these questions: AlpacaEval's JSON, or question.jsonl of Arena-Hard or MT-Bench; can be "
        "repeated",
    )
    parser.add_argument(
        "--max-new-tokens", type=int, help="maximum tokens of an answer (default: the recipe's, or 256)"
    )
    parser.add_argument("--temperature", type=float, help="sampling temperature (default: the recipe's, or 0: greedy)")
    parser.add_argument("--seed", type=int, default=0, help="seed of samples, drawn prompts and intervals (default: 0)")
    parser.add_argument("--batch-tokens", type=int, help="tokens per batch; changes no result (default: 8192)")
    add_judge(parser)
    parser.add_argument("--name", help="name of the policy in the files for judges (default: its directory's)")
    parser.add_argument(
        "-o", "--output", metavar="DIR", help="directory for eval.json and answers (default: eval_output)"
    )


def run_eval(options: argparse.Namespace) -> int:
    """Run the evaluation that the options describe.

    Returns:
        The exit status.

    Raises:
        SepoError: the recipe, the data, the models or the request is wrong.
    """
    from sepo.hosts.llamafactory.recipe import load_host, quiet_on_one_device

    quiet_on_one_device()
    load_host("eval")
    from sepo.forward.sequences import DEFAULT_BATCH_TOKENS
    from sepo.hosts.llamafactory.evaluate import Request, evaluate

    evaluate(
        Path(options.recipe),
        options.overrides,
        request=Request(
            generate=options.generate,
            max_new_tokens=options.max_new_tokens,
            temperature=options.temperature,
            seed=options.seed,
            questions=tuple(map(Path, options.questions)),
            batch_tokens=DEFAULT_BATCH_TOKENS if options.batch_tokens is None else options.batch_tokens,
            before=options.before,
            output=None if options.output is None else Path(options.output),
            name=options.name,
            judge=judge_request(options),
        ),
    )
    return 0
