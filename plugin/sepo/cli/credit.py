"""`sepo credit`: measure how well token scorers find known errors."""

from __future__ import annotations

import argparse
import functools
import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sepo.errors import SepoError

if TYPE_CHECKING:
    from sepo.credit.run import CreditRequest
    from sepo.credit.scorers import CreditModels
    from sepo.runs.oracle_of_run import ScoredRun

_DESCRIPTION = """\
Measure how well token scores find the tokens that are known to be wrong, in rejected responses whose errors are marked:
AUROC and average precision, precision and recall at the selection ratio, within each response, with intervals, by type
of error; and the differences between scorers.

DATA is a JSON file of ranking rows with rejected_error_spans, in characters of the rejected response
([{"start": 0, "end": 4, "type": "Wrong-Name"}]), or one of the built-in held-out sets: demo, or demo:fluent.
RUN_DIR is the output_dir of a sepo run (or pipeline), whose oracle is measured on --data."""

_EPILOG = """examples:
  sepo credit saves/run --data my_pairs.json            the oracle of a run, against surprisal and chance
  sepo credit demo_output/runs/sepo-42 --data demo:fluent -o out.json --figure out.png
  sepo credit my_pairs.json --model Qwen/Qwen3-0.6B --template qwen3_nothink --scorers contrastive,surprisal
"""


def add_credit(parser: argparse.ArgumentParser) -> None:
    """Add the options to the parser of `sepo credit`."""
    parser.description, parser.epilog = _DESCRIPTION, _EPILOG
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("source", metavar="DATA | RUN_DIR")
    parser.add_argument("--data", help="the pairs to measure a run's oracle on (default: demo)")
    parser.add_argument(
        "--scorers",
        help="comma-separated: oracle, surprisal, contrastive, policy_ref, random, any other token_scorer of a recipe, "
        "store:DIR; default: random, and oracle and surprisal if their models are given",
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
    models.add_argument("--oracle-model", help="the oracle (default: the oracle's base, with --oracle-adapters)")
    models.add_argument("--oracle-adapters", "--oracle-model-adapters", help="adapters of the oracle")
    models.add_argument(
        "--oracle-base", "--oracle-base-model", help="the model that the oracle was trained from (default: --model)"
    )
    models.add_argument("--oracle-base-adapters", "--oracle-base-model-adapters", help="adapters of the oracle's base")
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
    reading.add_argument("--rows", type=int, help="measure only the first ROWS rows")
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
    parser.add_argument("--overwrite", action="store_true", help="replace existing files")


def run_credit(options: argparse.Namespace) -> int:
    """Measure the scorers, print the results and write the requested files.

    Returns:
        The exit status.

    Raises:
        SepoError: the data, a model or an option is wrong.
    """
    output = _target(options.output, "-o", (".json",), overwrite=options.overwrite)
    plot = _target(options.figure, "--figure", (".png", ".svg", ".pdf"), overwrite=options.overwrite)
    from sepo.hosts.llamafactory.recipe import load_host, quiet_on_one_device

    quiet_on_one_device()
    load_host("credit")
    from sepo.credit.data import read_pairs
    from sepo.credit.report import print_result
    from sepo.credit.run import measure
    from sepo.hosts.llamafactory.credit import LlamaFactoryCredit
    from sepo.hosts.llamafactory.hub import access_in

    request = _request(options)
    pairs = read_pairs(request.source)
    given = {"cache_dir": options.cache_dir, "trust_remote_code": options.trust_remote_code}
    open_host = functools.partial(LlamaFactoryCredit, access=access_in(given))
    result = measure(pairs[: options.rows], request, open_host=open_host, progress=True)
    print_result(result)
    if output is not None:
        _write(result, output)
        print(f"written: {output}")
    if plot is not None:
        from sepo.credit.figure import draw, save

        save(draw(result), plot)
        print(f"drawn: {plot}")
    return 0


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


def _request(options: argparse.Namespace) -> CreditRequest:
    """Return the request that the command line describes."""
    from sepo.credit.run import CreditRequest
    from sepo.forward.sequences import DEFAULT_BATCH_TOKENS
    from sepo.runs.oracle_of_run import is_run, read_run
    from sepo.selection.select import check_ratio

    folder = Path(options.source).expanduser()
    run: ScoredRun | None = None
    source = options.source
    if folder.is_dir():
        if not is_run(folder):
            raise SepoError(
                f"{folder} is a directory without a sepo run; expected a JSON file of pairs, or a run's directory."
            )
        run, source = read_run(folder), options.data or "demo"
    elif options.data is not None:
        raise SepoError(f"--data needs a run's directory; '{options.source}' is read as the data. Remove --data.")
    models = _models(options, run)
    ratio = options.ratio if options.ratio is not None else (run and run.ratio) or 0.3
    check_ratio(ratio, name="--ratio")
    cutoff = options.cutoff_len if options.cutoff_len is not None else (run and run.cutoff_len) or 2048
    limits = (("--cutoff-len", cutoff, 2), ("--bootstrap", options.bootstrap, 1), ("--rows", options.rows, 1))
    for name, value, least in (*limits, ("--batch-tokens", options.batch_tokens, 1)):
        if value is not None and value < least:
            raise SepoError(f"{name} is {value}, expected at least {least}.")
    return CreditRequest(
        source,
        _scorers(options, models),
        models,
        template=options.template or (None if run is None else run.template),
        cutoff_len=cutoff,
        dtype=options.dtype or (None if run is None else run.dtype),
        ratio=ratio,
        text_only=options.text_tokens,
        seed=options.seed,
        bootstrap=options.bootstrap,
        batch_tokens=options.batch_tokens or DEFAULT_BATCH_TOKENS,
    )


def _scorers(options: argparse.Namespace, models: CreditModels) -> list[str]:
    if options.scorers is not None:
        return [name.strip() for name in options.scorers.split(",") if name.strip()]
    named = {"oracle": models.oracle, "surprisal": models.model}
    return [*(name for name, spec in named.items() if spec is not None), "random"]


def _name_and_revision(text: str) -> tuple[str, str | None]:
    """Split NAME@REVISION; a local directory has no revision.

    >>> _name_and_revision("acme/oracle@v2"), _name_and_revision("acme/oracle")
    (('acme/oracle', 'v2'), ('acme/oracle', None))
    """
    name, _, revision = text.partition("@")
    if not revision or Path(text).expanduser().is_dir():
        return text, None
    return name, revision


def _models(options: argparse.Namespace, run: ScoredRun | None) -> CreditModels:
    """Return the models that the options name, with the run's oracle if they name none."""
    from sepo.credit.scorers import CreditModels
    from sepo.recipe.keys import names_of
    from sepo.recipe.model_specs import ModelSpec, OracleSpec

    bits = options.quantization_bit

    def spec(name: str | None, text: str | None) -> ModelSpec | None:
        if name is None:
            return None
        model, revision = _name_and_revision(name)
        adapters = [_name_and_revision(part) for part in names_of(text)]
        revisions = tuple(revision for _, revision in adapters)
        return ModelSpec(model, tuple(adapter for adapter, _ in adapters), bits, revision, revisions)

    oracle = None if run is None else run.oracle
    if options.oracle_model or options.oracle_adapters:
        base = spec(options.oracle_base or options.model or options.oracle_model, options.oracle_base_adapters)
        trained = spec(options.oracle_model or options.oracle_base or options.model, options.oracle_adapters)
        if base is None or trained is None:
            raise SepoError(
                "--oracle-adapters needs a model: name the one that the oracle was trained from with --oracle-base."
            )
        oracle = OracleSpec(trained, base)
    elif options.oracle_base or options.oracle_base_adapters:
        raise SepoError("--oracle-base is set without an oracle; set --oracle-model or --oracle-adapters too.")
    elif oracle is not None and bits is not None:
        oracle = OracleSpec(*(replace(side, quantization_bit=bits) for side in (oracle.oracle, oracle.base)))
    model = spec(options.model, options.adapters)
    if model is None:
        if options.adapters:
            raise SepoError("--adapters is set without --model; set --model too.")
        model = None if oracle is None else oracle.base
    reference = spec(options.ref_model or (options.ref_adapters and options.model), options.ref_adapters)
    if reference is None and options.ref_adapters:
        raise SepoError("--ref-adapters is set without a model; set --ref-model too.")
    return CreditModels(model, oracle, reference)
