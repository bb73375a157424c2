"""Options of `sepo credit`: the data, the models and the leaderboard's row that they name."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sepo.errors import SepoError

if TYPE_CHECKING:
    from sepo.credit.leaderboard import Row
    from sepo.credit.scored import CreditRequest
    from sepo.credit.scorers import CreditModels
    from sepo.runs.oracle_of_run import ScoredRun


_OF_ORACLES = ("oracle_model", "oracle_adapters", "oracle_base", "oracle_base_adapters")
"""Options that may be repeated, once for each oracle."""


def sources_of(options: argparse.Namespace) -> tuple[ScoredRun | None, list[str]]:
    """Return the run that is named, if any, and the data.

    Raises:
        SepoError: nothing is named, several directories are, or one is not a run.
    """
    from sepo.runs.oracle_of_run import is_run, read_run

    given = list(options.sources)
    folders = [source for source in given if "=" not in source and Path(source).expanduser().is_dir()]
    if not given:
        raise SepoError("no data is given; name a data set (NAME=PATH, see --list), a JSON file of pairs, or a run.")
    if not folders:
        if options.data is not None:
            raise SepoError(f"--data needs a run's directory; '{given[0]}' is read as the data. Remove --data.")
        return None, given
    folder = Path(folders[0]).expanduser()
    if not is_run(folder):
        raise SepoError(
            f"{folder} is a directory without a sepo run; expected a JSON file of pairs, NAME=DIRECTORY of a public "
            "data set, or a run's directory."
        )
    if len(folders) > 1:
        raise SepoError(f"{', '.join(folders)} are directories; expected one run, and data sets as NAME=PATH.")
    data = [*(source for source in given if source != folders[0]), *(options.data or [])]
    return read_run(folder), data or ["demo"]


def request_of(options: argparse.Namespace, run: ScoredRun | None, source: str) -> CreditRequest:
    """Return the request that the command line describes.

    Args:
        options: the parsed options.
        run: the run that is named, whose settings are the defaults.
        source: name of the data.

    Raises:
        SepoError: an option is wrong.
    """
    from sepo.credit.scored import CreditRequest
    from sepo.forward.sequences import DEFAULT_BATCH_TOKENS
    from sepo.selection.select import check_ratio

    models = models_of(options, run)
    ratio = options.ratio if options.ratio is not None else (run and run.ratio) or 0.3
    check_ratio(ratio, name="--ratio")
    cutoff = options.cutoff_len if options.cutoff_len is not None else (run and run.cutoff_len) or 2048
    limits = (("--cutoff-len", cutoff, 2), ("--bootstrap", options.bootstrap, 1), ("--rows", options.rows, 1))
    for name, value, least in (*limits, ("--batch-tokens", options.batch_tokens, 1)):
        if value is not None and value < least:
            raise SepoError(f"{name} is {value}, expected at least {least}.")
    return CreditRequest(
        source,
        _scorers(options, models, run),
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


def _scorers(options: argparse.Namespace, models: CreditModels, run: ScoredRun | None) -> list[str]:
    if options.scorers is not None:
        return [name.strip() for name in options.scorers.split(",") if name.strip()]
    oracles = [] if models.oracle is None else ["oracle"]
    if oracles and run is not None and run.scores != "ratio":
        oracles.append(f"oracle_{run.scores}")
    return [*oracles, *([] if models.model is None else ["surprisal"]), "random"]


def _name_and_revision(text: str) -> tuple[str, str | None]:
    """Split NAME@REVISION; a local directory has no revision.

    >>> _name_and_revision("acme/oracle@v2"), _name_and_revision("acme/oracle")
    (('acme/oracle', 'v2'), ('acme/oracle', None))
    """
    name, _, revision = text.partition("@")
    if not revision or Path(text).expanduser().is_dir():
        return text, None
    return name, revision


def models_of(options: argparse.Namespace, run: ScoredRun | None) -> CreditModels:
    """Return the models that the options name, with the run's oracle if they name none.

    Raises:
        SepoError: an option is set without the one that it belongs to.
    """
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

    oracles = [] if run is None else list(run.oracles)
    if options.oracle_model or options.oracle_adapters:
        oracles = []
        for each in _each_oracle(options):
            base = spec(each["oracle_base"] or options.model or each["oracle_model"], each["oracle_base_adapters"])
            trained = spec(each["oracle_model"] or each["oracle_base"] or options.model, each["oracle_adapters"])
            if base is None or trained is None:
                raise SepoError(
                    "--oracle-adapters needs a model: name the one that the oracle was trained from with --oracle-base."
                )
            oracles.append(OracleSpec(trained, base))
        if len(set(oracles)) < len(oracles):
            raise SepoError("options of oracles name the same oracle twice; remove one of them.")
    elif options.oracle_base or options.oracle_base_adapters:
        raise SepoError("--oracle-base is set without an oracle; set --oracle-model or --oracle-adapters too.")
    elif bits is not None:
        oracles = [
            OracleSpec(*(replace(side, quantization_bit=bits) for side in (each.oracle, each.base))) for each in oracles
        ]
    model = spec(options.model, options.adapters)
    if model is None:
        if options.adapters:
            raise SepoError("--adapters is set without --model; set --model too.")
        model = oracles[0].base if oracles else None
    reference = spec(options.ref_model or (options.ref_adapters and options.model), options.ref_adapters)
    if reference is None and options.ref_adapters:
        raise SepoError("--ref-adapters is set without a model; set --ref-model too.")
    return CreditModels(model, oracles[0] if oracles else None, reference, tuple(oracles[1:]))


def _each_oracle(options: argparse.Namespace) -> list[dict[str, str | None]]:
    """Return the options of each oracle; one that is given once is that of all.

    Raises:
        SepoError: options are given for different numbers of oracles.
    """
    given = {name: getattr(options, name) or [None] for name in _OF_ORACLES}
    count = max(map(len, given.values()))
    for name, values in given.items():
        if len(values) not in (1, count):
            raise SepoError(
                f"--{name.replace('_', '-')} is given {len(values)} times, for {count} oracles; give it once, or once "
                "for each of them."
            )
    return [{name: values[min(index, len(values) - 1)] for name, values in given.items()} for index in range(count)]


def given_recipe(options: argparse.Namespace) -> dict[str, Any] | None:
    """Return the recipe that is named for the leaderboard, without secrets.

    Raises:
        SepoError: an option of the leaderboard is set without it, or the recipe cannot be read.
    """
    from sepo.redaction import redacted

    if options.leaderboard is None:
        for name in ("recipe", "label"):
            if getattr(options, name) is not None:
                raise SepoError(f"--{name} is set without --leaderboard; set --leaderboard too.")
    if options.recipe is None:
        return None
    import yaml

    path = Path(options.recipe).expanduser()
    try:
        recipe = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise SepoError(f"--recipe {path}: {' '.join(str(error).split())}") from error
    if not isinstance(recipe, dict):
        raise SepoError(f"--recipe {path} has {type(recipe).__name__} at its top level; expected keys and values.")
    return dict(redacted(recipe))


def row_of(
    options: argparse.Namespace,
    run: ScoredRun | None,
    request: CreditRequest,
    names: list[str],
    recipe: dict[str, Any] | None,
) -> tuple[Path, Row]:
    """Return the directory of the leaderboard and what its rows add to the results.

    Args:
        options: the parsed options.
        run: the run that is named, whose recorded recipe is the default.
        request: the request.
        names: names of the data sets.
        recipe: the return value of ``given_recipe``.

    Raises:
        SepoError: the models have no name, or a row exists already.
    """
    import datetime

    from sepo.credit.leaderboard import Row, check_new
    from sepo.runs.folder import read_recipe
    from sepo.runs.provenance import package_versions

    folder = Path(options.leaderboard).expanduser()
    models = request.models
    spec = models.oracle.oracle if models.oracle is not None else models.model
    label = options.label or (
        "" if spec is None else "+".join(Path(part).name for part in (spec.model, *spec.adapters))
    )
    if not label:
        raise SepoError("--leaderboard needs a name of the models; set --label, or --model.")
    if not options.overwrite:
        check_new(folder, names, request.scorers, label)
    if recipe is None and run is not None:
        recipe = read_recipe(Path(run.folder), [])[0] or None
    date = datetime.datetime.now(tz=datetime.UTC).date().isoformat()
    return folder, Row(label, date, package_versions(), recipe)
