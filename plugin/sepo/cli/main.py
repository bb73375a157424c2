"""The `sepo` command. Commands that need torch or a host import it when they run, so that `sepo --help` is instant."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from sepo import __version__
from sepo.cli.credit import add_credit, run_credit
from sepo.cli.evaluation import add_eval, run_eval
from sepo.cli.report import add_report, add_show, run_report, run_show
from sepo.cli.scores import add_scores, run_scores
from sepo.errors import SepoError

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


def _train(options: argparse.Namespace) -> int:
    from sepo.hosts.llamafactory.launcher import train

    return train(options.words)


def _score(options: argparse.Namespace) -> int:
    from sepo.hosts.llamafactory.launcher import train

    return train(options.words, score_only=True)


def _pipeline(options: argparse.Namespace) -> int:
    from sepo.hosts.llamafactory.recipe import load_host, require_host

    require_host("pipeline")
    from sepo.hosts.llamafactory.pipeline import read_pipeline, run_pipeline

    recipe = read_pipeline(options.recipe, options.overrides)
    load_host("pipeline")
    run_pipeline(recipe)
    return 0


def _bench(options: argparse.Namespace) -> int:
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


def _plan(options: argparse.Namespace) -> int:
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
    )
    return 0


def _status(options: argparse.Namespace) -> int:
    from sepo.runs.status import status

    status(Path(options.folder), as_json=options.json)
    return 0


def _webui(options: argparse.Namespace) -> int:
    from sepo.hosts.llamafactory.launcher import webui

    return webui()


def _enable(options: argparse.Namespace) -> int:
    from sepo.hosts.llamafactory.enable import enable
    from sepo.hosts.llamafactory.recipe import require_host

    require_host("enable")
    print(f"enabled: {enable()}\n`llamafactory-cli train` and `webui` know our stages now; `sepo disable` undoes it.")
    return 0


def _disable(options: argparse.Namespace) -> int:
    from sepo.hosts.llamafactory.enable import disable, pth_file

    print(f"disabled: removed {pth_file()}" if disable() else "nothing to undo: sepo was not enabled here")
    return 0


def _doctor(options: argparse.Namespace) -> int:
    from sepo.cli.doctor import doctor

    return doctor()


def _demo(options: argparse.Namespace) -> int:
    from sepo.demo.run import run_demo

    run_demo(Path(options.output))
    return 0


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

    def command(name: str, run: Callable[[argparse.Namespace], int], text: str) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=text, description=text)
        added.set_defaults(run=run)
        return added

    # Words of `train` are the host's to read; argparse would take its --options for ours.
    command("train", _train, "Train a LLaMA-Factory recipe: recipe.yaml [key=value ...].")
    # The same holds for `score`, which takes what `train` takes.
    command(
        "score", _score, "Score what a recipe scores before it trains, and nothing else: recipe.yaml [key=value ...]."
    )
    add_scores(command("scores", run_scores, "List, show, check, export and remove stores of token scores."))
    add_show(command("show", run_show, "Print pairs with their tokens coloured by score, the selected ones marked."))
    pipeline = command("pipeline", _pipeline, "Train base and oracle, score, train the policy: one recipe.")
    _add_recipe(pipeline, "a recipe with shared keys and the sections base, oracle and policy", "policy.sepo_gamma=2")
    _add_plan(command("plan", _plan, "Say what memory a recipe needs, and whether it fits, before anything is loaded."))
    state = command("status", _status, "Say how far a run is: step, rate, time left, last metrics, what it selects.")
    state.add_argument("folder", metavar="DIR", help="output_dir of a run, going on or ended")
    state.add_argument("--json", action="store_true", help="as JSON")
    add_report(command("report", run_report, "Show what a run or a store holds: one HTML page, and figures."))
    add_eval(command("eval", run_eval, "Measure a policy on held-out pairs: preferences, KL, and what it writes."))
    board = command("webui", _webui, "Open LLaMA Board with our stages among its training stages.")
    board.epilog = (
        "As `llamafactory-cli webui`: GRADIO_SERVER_NAME, GRADIO_SERVER_PORT, GRADIO_SHARE, GRADIO_ROOT_PATH and the "
        "other variables of gradio apply. After `sepo enable` the host's own command shows the same."
    )
    add_credit(command("credit", run_credit, "Measure how well token scorers find errors that are known."))
    _add_bench(command("bench", _bench, "Measure our stages against the host's dpo and simpo, on this machine."))
    command("enable", _enable, "Make plain `llamafactory-cli train` know our stages, in its workers too.")
    command("disable", _disable, "Undo `sepo enable` completely.")
    command("doctor", _doctor, "Say what is installed, what is active and what is wrong.")
    demo = command("demo", _demo, "Align a real small model with SePO on this machine and show what was selected.")
    demo.add_argument("-o", "--output", default="demo_output", help="folder for everything that it makes")
    return parser


def _add_recipe(command: argparse.ArgumentParser, what: str, override: str) -> None:
    command.add_argument("recipe", type=Path, help=what)
    command.add_argument("overrides", nargs="*", metavar="key=value", help=f"such as {override}")


def _add_output(command: argparse.ArgumentParser, what: str) -> None:
    command.add_argument("-o", "--output", type=Path, metavar="FILE.json", help=f"also write {what} as JSON")


def _add_plan(plan: argparse.ArgumentParser) -> None:
    plan.description = (
        "An account of memory from the models' configurations alone: weights, adapters, gradients, optimizer, "
        "activations, head, reference and scoring models, phase by phase; whether it fits, and what would make it fit."
    )
    _add_recipe(plan, "a recipe of one of our stages", "quantization_bit=4")
    plan.add_argument("--gpu", metavar="SIZE", help="memory of a device, such as 24GiB; default: this machine's")
    plan.add_argument("--processes", type=int, help="how many processes train (NPROC_PER_NODE x NNODES, or 1)")
    plan.add_argument(
        "--tokens", type=int, help="of the longest device batch, each prompt once; default: what cutoff_len allows"
    )
    _add_output(plan, "the account")


def _add_bench(bench: argparse.ArgumentParser) -> None:
    bench.description = (
        "Pairs and tokens per second and peak memory of our stages and of LLaMA-Factory's own dpo and simpo, with this "
        "recipe's model, data and training settings. Nothing is trained, scored or saved."
    )
    _add_recipe(bench, "a recipe of one of our stages, or of the host's dpo", "per_device_train_batch_size=4")
    bench.add_argument("--rounds", type=int, default=5, help="timed rounds (5); every round is another batch")
    bench.add_argument(
        "--stages",
        help="a comma-separated subset of host_dpo, host_simpo, sepo, dpo, simpo, selective_dpo, minor_dpo and treg; "
        "recipe: the recipe's own method, where it is none of these",
    )
    bench.add_argument("--no-memory", dest="memory", action="store_false", help="do not measure peak memory")
    _add_output(bench, "everything")


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
        if words[:1] in (["train"], ["score"]) and words[1:] not in (["-h"], ["--help"]):
            if words == ["score"]:
                raise SepoError("no recipe is named; run: sepo score recipe.yaml [key=value ...]")
            return (_train if words[0] == "train" else _score)(argparse.Namespace(words=words[1:]))
        options = _parsed(build_parser(), words)
        return options.run(options)
    except SepoError as error:
        print(f"sepo: error: {error}", file=sys.stderr)
        return 2
