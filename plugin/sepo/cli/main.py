"""The `sepo` command. Commands import torch or a host only when they run, so that `sepo --help` is instant."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence

from sepo import __version__
from sepo.cli import train
from sepo.cli.activation import add_webui, run_disable, run_enable, run_webui
from sepo.cli.arguments import add_timing
from sepo.cli.bench import add_bench, run_bench
from sepo.cli.compare import add_compare, run_compare
from sepo.cli.credit import add_credit, run_credit
from sepo.cli.demo import add_demo, run_demo
from sepo.cli.ending import QuickEnd
from sepo.cli.evaluation import add_eval, run_eval
from sepo.cli.pairs import add_pairs, run_pairs
from sepo.cli.pipeline import add_pipeline, run_pipeline
from sepo.cli.plan import add_plan, run_plan
from sepo.cli.report import add_report, add_show, run_report, run_show
from sepo.cli.sampling import add_sample, run_sample
from sepo.cli.scores import add_scores, run_scores
from sepo.cli.status import add_status, run_status
from sepo.errors import SepoError
from sepo.hosts.errors import print_error
from sepo.redaction import redacted_words

Command = Callable[[argparse.Namespace], int]
"""Runs a command with its parsed options and returns the exit status."""

_ENDED_QUICKLY = ("plan",)
"""Commands that import a host and leave nothing to it to finish."""

EPILOG = """examples:
  sepo train recipe.yaml learning_rate=1e-5     train a recipe of LLaMA-Factory or of sepo's stages
  sepo score recipe.yaml                        only compute its token scores; `sepo train` reuses them
  sepo scores ls                                list stored scores
  sepo show saves/run --row 3                   show which tokens were selected
  sepo pairs recipe.yaml                        sample and judge responses, write pairs to train on
  sepo pipeline recipe.yaml                     train base and oracle, score, train the policy
  sepo compare recipe.yaml                      train variants of a recipe, and compare them on held-out pairs
  sepo plan recipe.yaml --gpu 24GiB             report the memory that it needs, and whether it fits
  sepo status saves/run                         report the progress of a run
  sepo report saves/run                         write one page: tokens, scores, training
  sepo eval recipe.yaml adapter_name_or_path=saves/run --before --generate 64
                                                measure what training changed, on held-out pairs
  sepo sample saves/run --samples 8 --judge math --expected-column answer
                                                write 8 responses to each prompt, and which are right
  sepo credit saves/run --data pairs.json       measure how well its oracle finds marked errors
  sepo bench recipe.yaml                        compare speed and memory of sepo's and the host's stages
  sepo webui                                    open LLaMA Board with sepo's stages
  sepo enable                                   make plain `llamafactory-cli train` run sepo's stages
"""


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of all commands."""
    parser = argparse.ArgumentParser(
        prog="sepo",
        description="Token-selective preference optimization for LLaMA-Factory recipes.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"sepo {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")

    def command(
        name: str, text: str, run: Callable[[argparse.Namespace], int] | None = None
    ) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=text, description=text)
        added.set_defaults(run=run)
        return added

    for name, text in train.COMMANDS.items():  # parsed by the host; see main
        command(name, text)
    add_scores(command("scores", "List, show, check, export and remove stores of token scores.", run_scores))
    add_show(command("show", "Print pairs with their tokens colored by score and the selected ones marked.", run_show))
    add_pairs(command("pairs", "Sample responses of a policy, judge them, and write pairs to train on.", run_pairs))
    add_pipeline(
        command("pipeline", "Train base and oracle, score, and train the policy, from one recipe.", run_pipeline)
    )
    add_compare(
        command(
            "compare",
            "Train and evaluate variants of a recipe, and compare them on the same held-out pairs.",
            run_compare,
        )
    )
    add_plan(
        command(
            "plan", "Report the memory that a recipe needs, and whether it fits, before anything is loaded.", run_plan
        )
    )
    add_status(
        command("status", "Report the progress of a run: step, rate, time left, last metrics, selection.", run_status)
    )
    add_report(command("report", "Write the contents of runs or stores as one HTML page, and figures.", run_report))
    add_eval(command("eval", "Measure a policy on held-out pairs: preferences, KL and generated answers.", run_eval))
    add_sample(command("sample", "Write several responses to each prompt as JSON lines, with verdicts.", run_sample))
    add_webui(command("webui", "Open LLaMA Board with sepo's stages among its training stages.", run_webui))
    add_credit(command("credit", "Measure how well token scorers find known errors.", run_credit))
    add_bench(command("bench", "Benchmark sepo's stages against the host's dpo and simpo, on this machine.", run_bench))
    command("enable", "Make plain `llamafactory-cli train` and its workers run sepo's stages.", run_enable)
    command("disable", "Undo `sepo enable` completely.", run_disable)
    add_timing(
        command("doctor", "Report which packages are installed, which host is active and what is wrong.", _doctor)
    )
    add_demo(
        command("demo", "Train a real small model in four ways on this machine, and show what each gained.", run_demo)
    )
    return parser


def _doctor(options: argparse.Namespace) -> int:
    from sepo.cli.doctor import run_doctor

    return run_doctor(options)


def _parsed(parser: argparse.ArgumentParser, words: Sequence[str]) -> argparse.Namespace:
    """Parse the command line; ``key=value`` may also follow options, where argparse does not look for them."""
    options, more = parser.parse_known_args(words)
    misplaced = [word for word in more if word.startswith("-") or "=" not in word or not hasattr(options, "overrides")]
    if misplaced:
        parser.error(f"unrecognized arguments: {' '.join(redacted_words(misplaced))}")
    if more:
        options.overrides = [*options.overrides, *more]
    return options


def main(words: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        words: the command line without the program's name; None for ``sys.argv``.

    Returns:
        0, or 2 if the user's input is wrong, or the exit status of the host.
    """
    is_program = words is None
    words = list(sys.argv[1:] if words is None else words)
    try:
        if words and words[0] in train.COMMANDS and words[1:] not in (["-h"], ["--help"]):
            return train.run_train(words[0], words[1:])
        options = _parsed(build_parser(), words)
        ending = QuickEnd() if is_program and options.command in _ENDED_QUICKLY else None
        status = options.run(options)
    except SepoError as error:
        print_error(error)
        return 2
    if ending is not None:
        ending.status = status
    return status
