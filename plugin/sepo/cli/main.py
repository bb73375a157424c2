"""The `sepo` command. Commands import torch or a host when they run, so that `sepo --help` is instant."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence

from sepo import __version__
from sepo.cli import train
from sepo.cli.activation import add_webui, run_disable, run_enable, run_webui
from sepo.cli.bench import add_bench, run_bench
from sepo.cli.credit import add_credit, run_credit
from sepo.cli.demo import add_demo, run_demo
from sepo.cli.evaluation import add_eval, run_eval
from sepo.cli.pipeline import add_pipeline, run_pipeline
from sepo.cli.plan import add_plan, run_plan
from sepo.cli.report import add_report, add_show, run_report, run_show
from sepo.cli.scores import add_scores, run_scores
from sepo.cli.status import add_status, run_status
from sepo.errors import SepoError

Command = Callable[[argparse.Namespace], int]
"""Runs what was parsed and returns the exit status."""

EPILOG = """examples:
  sepo train recipe.yaml learning_rate=1e-5     a LLaMA-Factory recipe, ours or theirs
  sepo score recipe.yaml                        its token scores alone; `sepo train` then finds them
  sepo scores ls                                which scores there are
  sepo show saves/run --row 3                   which tokens were selected
  sepo pipeline recipe.yaml                     base, oracle, scores, policy
  sepo plan recipe.yaml --gpu 24GiB             what memory it needs, and whether it fits
  sepo status saves/run                         how far a run is
  sepo report saves/run                         one page: tokens, scores, training
  sepo eval recipe.yaml adapter_name_or_path=saves/run --before --generate 64
                                                what training changed, on held-out pairs
  sepo credit saves/run --data pairs.json       how well its oracle finds errors that are marked
  sepo bench recipe.yaml                        our stages and the host's own: speed and memory, here
  sepo webui                                    LLaMA Board with our stages
  sepo enable                                   plain `llamafactory-cli train` knows our stages from now on
"""


def build_parser() -> argparse.ArgumentParser:
    """Build the parser of all commands."""
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
    add_show(command("show", "Print pairs with their tokens coloured by score, the selected ones marked.", run_show))
    add_pipeline(command("pipeline", "Train base and oracle, score, train the policy: one recipe.", run_pipeline))
    add_plan(
        command("plan", "Report what memory a recipe needs, and whether it fits, before anything is loaded.", run_plan)
    )
    add_status(
        command("status", "Report how far a run is: step, rate, time left, last metrics, selection.", run_status)
    )
    add_report(command("report", "Show what a run or a store holds: one HTML page, and figures.", run_report))
    add_eval(command("eval", "Measure a policy on held-out pairs: preferences, KL, and what it writes.", run_eval))
    add_webui(command("webui", "Open LLaMA Board with our stages among its training stages.", run_webui))
    add_credit(command("credit", "Measure how well token scorers find errors that are known.", run_credit))
    add_bench(command("bench", "Measure our stages against the host's dpo and simpo, on this machine.", run_bench))
    command("enable", "Make plain `llamafactory-cli train` know our stages, in its workers too.", run_enable)
    command("disable", "Undo `sepo enable` completely.", run_disable)
    command("doctor", "Report what is installed, what is active and what is wrong.", _doctor)
    add_demo(
        command("demo", "Align a real small model with SePO on this machine and show what was selected.", run_demo)
    )
    return parser


def _doctor(options: argparse.Namespace) -> int:
    from sepo.cli.doctor import run_doctor

    return run_doctor(options)


def _parsed(parser: argparse.ArgumentParser, words: Sequence[str]) -> argparse.Namespace:
    """Parse; ``key=value`` may also stand behind options, where argparse does not look for them."""
    options, more = parser.parse_known_args(words)
    misplaced = [word for word in more if word.startswith("-") or "=" not in word or not hasattr(options, "overrides")]
    if misplaced:
        parser.error(f"unrecognized arguments: {' '.join(misplaced)}")
    if more:
        options.overrides = [*options.overrides, *more]
    return options


def main(words: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        words: the command line without the program's name; None for the process's own.

    Returns:
        0, or 2 where the user's input was wrong, or what the host returned.
    """
    words = list(sys.argv[1:] if words is None else words)
    try:
        if words and words[0] in train.COMMANDS and words[1:] not in (["-h"], ["--help"]):
            return train.run_train(words[0], words[1:])
        options = _parsed(build_parser(), words)
        return options.run(options)
    except SepoError as error:
        print(f"sepo: error: {error}", file=sys.stderr)
        return 2
