"""`sepo credit`: measure how well token scorers find known errors."""

from __future__ import annotations

import argparse
import functools
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sepo.cli.credit_options import given_recipe, request_of, row_of, sources_of
from sepo.errors import SepoError

if TYPE_CHECKING:
    from sepo.credit.leaderboard import Row

_DESCRIPTION = """\
Measure how well token scores find the tokens that are known to be wrong, in rejected responses whose errors are marked:
AUROC and average precision, precision and recall at the selection ratio, and whether the lowest-ranked token is the
first error; within each response, with intervals; by token, error span and step, by type of error and by language; and
the differences between scorers.

NAME=PATH is a public data set, downloaded by you (--list: names, licences, sources, files); several can be measured at
once. DATA is a JSON file of ranking rows with rejected_error_spans, in characters of the rejected response
([{"start": 0, "end": 4, "type": "Wrong-Name"}]), or one of the built-in held-out sets: obvious, or fluent.
RUN_DIR is the output_dir of a sepo run (or pipeline), whose oracle is measured on --data."""

_EPILOG = """examples:
  sepo credit saves/run --data my_pairs.json            the oracle of a run, against surprisal and chance
  sepo credit demo_output/runs/sepo-42 --data fluent -o out.json --figure out.png --page out.html
  sepo credit --list
  sepo credit prmbench=prmtest_classified.jsonl wmt_mqm=mqm_ted_ende.tsv --check
  sepo credit prmbench=prmtest_classified.jsonl fluent --model Qwen/Qwen3-0.6B --rows 200 --leaderboard my_results
  sepo credit my_pairs.json --model Qwen/Qwen3-0.6B --template qwen3_nothink --scorers contrastive,surprisal
"""


def add_credit(parser: argparse.ArgumentParser) -> None:
    """Add the options to the parser of `sepo credit`."""
    parser.description, parser.epilog = _DESCRIPTION, _EPILOG
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("sources", metavar="NAME=PATH | DATA | RUN_DIR", nargs="*")
    parser.add_argument(
        "--data",
        action="append",
        metavar="NAME=PATH | DATA",
        help="the pairs to measure a run's oracle on; may be repeated (default: demo)",
    )
    parser.add_argument("--list", action="store_true", help="list the public data sets and where to download them")
    parser.add_argument("--check", action="store_true", help="read the data, report what was read, and stop")
    parser.add_argument(
        "--skip-damaged", action="store_true", help="leave out and count damaged rows of public data sets"
    )
    parser.add_argument(
        "--scorers",
        help="comma-separated: oracle, oracle_centered, oracle_step_mean, oracle_first_error, surprisal, "
        "surprisal_centered, contrastive, policy_ref, random, position, any other token_scorer of "
        "a recipe, store:DIR; default: random, and oracle and surprisal if their models are given",
    )
    models = parser.add_argument_group(
        "models (local directories or hub names, NAME@REVISION for a branch, tag or commit; adapters comma-separated, "
        "in order)"
    )
    models.add_argument(
        "--model",
        help="the model for surprisal and contrastive prompts, and the policy of policy_ref; its tokenizer is used "
        "(default: the oracle's base)",
    )
    models.add_argument("--adapters", help="adapters of --model")
    several: dict[str, Any] = {"action": "append", "default": None}
    models.add_argument(
        "--oracle-model",
        help="the oracle (default: the oracle's base, with --oracle-adapters). Options of oracles may be repeated, "
        "once for each of several, whose scores are averaged; one that is given once is that of all",
        **several,
    )
    models.add_argument("--oracle-adapters", "--oracle-model-adapters", help="adapters of the oracle", **several)
    models.add_argument(
        "--oracle-base",
        "--oracle-base-model",
        help="the model that the oracle was trained from (default: --model)",
        **several,
    )
    models.add_argument(
        "--oracle-base-adapters",
        "--oracle-base-model-adapters",
        help="adapters of the oracle's base",
        **several,
    )
    models.add_argument("--ref-model", help="the reference of policy_ref (default: --model, with --ref-adapters)")
    models.add_argument("--ref-adapters", "--ref-model-adapters", help="adapters of the reference")
    models.add_argument("--cache-dir", help="directory of models of the hub (default: the hub's; a token: HF_TOKEN)")
    models.add_argument("--trust-remote-code", action="store_true", help="allow models and tokenizers to run own code")
    models.add_argument("--quantization-bit", type=int, choices=(4, 8), help="load all models quantized to 4 or 8 bits")
    reading = parser.add_argument_group("tokenization and scoring")
    reading.add_argument(
        "--template",
        help="a template of LLaMA-Factory, as in a recipe (default: the run's, or the tokenizer's chat template)",
    )
    reading.add_argument(
        "--cutoff-len", type=int, help="maximum tokens of prompt and response (default: the run's, or 2048)"
    )
    reading.add_argument(
        "--dtype",
        choices=("fp32", "bf16", "fp16"),
        help="precision of the models (default: the run's, or the host's choice)",
    )
    reading.add_argument("--text-tokens", action="store_true", help="exclude the end of turn")
    reading.add_argument(
        "--rows",
        type=int,
        help="measure at most ROWS rows of each data set: of public ones evenly spaced, else the first",
    )
    reading.add_argument("--batch-tokens", type=int, help="tokens per scoring batch (default: 8192)")
    measuring = parser.add_argument_group("measures")
    measuring.add_argument(
        "--ratio", type=float, help="share of a response's tokens that is selected (default: the run's, or 0.3)"
    )
    measuring.add_argument(
        "--seed", type=int, default=0, help="seed of the bootstrap and of random scores (default: 0)"
    )
    measuring.add_argument(
        "--bootstrap", type=int, default=1000, metavar="SAMPLES", help="number of bootstrap samples (default: 1000)"
    )
    parser.add_argument("-o", "--output", metavar="FILE.json", help="also write all results as JSON")
    parser.add_argument("--figure", metavar="FILE.png", help="also plot them (.png, .svg or .pdf)")
    parser.add_argument(
        "--page", metavar="FILE.html", help="also write them as a page, as `sepo report FILE.json` does"
    )
    parser.add_argument(
        "--leaderboard", metavar="DIR", help="also add the results to a leaderboard, a directory of JSON files"
    )
    parser.add_argument(
        "--label", help="with --leaderboard: the row's name for the models (default: the directories' names)"
    )
    parser.add_argument(
        "--recipe",
        metavar="FILE.yaml",
        help="with --leaderboard: the recipe that made the models (default: the run's recorded recipe)",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace existing files")


def run_credit(options: argparse.Namespace) -> int:
    """Measure the scorers, print the results and write the requested files.

    Returns:
        The exit status.

    Raises:
        SepoError: the data, a model or an option is wrong.
    """
    from sepo.credit.sets.registry import read_set
    from sepo.credit.sets.report import print_read, print_sets, read_as_dict

    if options.list:
        print_sets()
        return 0
    output = _target(options.output, "-o", (".json",), overwrite=options.overwrite)
    plot = _target(options.figure, "--figure", (".png", ".svg", ".pdf"), overwrite=options.overwrite)
    html = _target(options.page, "--page", (".html",), overwrite=options.overwrite)
    recipe = given_recipe(options)
    run, sources = sources_of(options)
    sets = [read_set(source, skip_damaged=options.skip_damaged) for source in sources]
    names = [each.name for each in sets]
    if len(set(names)) < len(names):
        raise SepoError(f"a data set is given twice ({', '.join(names)}); name a directory with all of its files.")
    if any(each.data_set for each in sets) or options.check:
        print_read(sets)
    if options.check:
        return 0
    from sepo.hosts.llamafactory.recipe import load_host, quiet_on_one_device

    quiet_on_one_device()
    load_host("credit")
    from sepo.credit.report import print_result, print_suite
    from sepo.credit.run import measure_sets
    from sepo.hosts.llamafactory.credit import LlamaFactoryCredit
    from sepo.hosts.llamafactory.hub import access_in

    request = request_of(options, run, ", ".join(names))
    board = None if options.leaderboard is None else row_of(options, run, request, names, recipe)
    given = {"cache_dir": options.cache_dir, "trust_remote_code": options.trust_remote_code}
    open_host = functools.partial(LlamaFactoryCredit, access=access_in(given))
    measured = {each.name: each.sample(options.rows) for each in sets}
    results = measure_sets(
        {name: each.pairs for name, each in measured.items()}, request, open_host=open_host, progress=True
    )
    for each in sets:
        if each.data_set is not None:
            results[each.name]["data"]["read"] = read_as_dict(each)
    for result in results.values():
        print_result(result)
    if len(results) > 1:
        print_suite(results)
    _write_all(results, output, plot, html, board)
    return 0


def _write_all(
    results: dict[str, dict[str, Any]],
    output: Path | None,
    plot: Path | None,
    html: Path | None,
    board: tuple[Path, Row] | None,
) -> None:
    from sepo.credit.run import as_one

    if output is not None:
        _write(as_one(results), output)
        print(f"written: {output}")
    if plot is not None:
        from sepo.credit.figure import draw, draw_suite, save

        save(draw(next(iter(results.values()))) if len(results) == 1 else draw_suite(results), plot)
        print(f"drawn: {plot}")
    if html is not None:
        from sepo.cli.credit_page import write_page

        write_page(results, html)
        print(f"written: {html}")
    if board is not None:
        from sepo.credit.leaderboard import entries, write

        for path in write(board[0], entries(results, board[1])):
            print(f"written: {path}")


def _target(name: str | None, option: str, endings: tuple[str, ...], *, overwrite: bool) -> Path | None:
    """Return the checked path of an output file. Raise before anything is computed if it cannot be written."""
    if name is None:
        return None
    path = Path(name).expanduser()
    if path.suffix not in endings:
        raise SepoError(f"{option} {name}: the file ends in {path.suffix!r}; expected {' or '.join(endings)}.")
    if not path.absolute().parent.is_dir():
        raise SepoError(f"{option} {name}: the directory {path.absolute().parent} does not exist.")
    if path.exists() and not overwrite:
        raise SepoError(f"{option} {name} already exists; name another file, or add --overwrite.")
    return path


def _write(result: dict[str, Any], path: Path) -> None:
    try:
        path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        raise SepoError(f"-o {path}: {error}") from error
