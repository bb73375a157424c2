"""Reading of runs and stores for reports. Damaged or missing files are reported in ``missing``, not raised."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from sepo.errors import SepoError
from sepo.objectives import NO_SCORER, Method, Selector
from sepo.recipe.stage_names import RTO
from sepo.report.recorded import recorded_pairs, recorded_spreads
from sepo.report.scorers import is_live, scored_by, store_of, store_scored_by
from sepo.report.selecting import method_of, selecting_method, with_weights, without_weights
from sepo.report.stored import HOW_TO_GET_TEXTS, StoreReader, evenly, store_settings
from sepo.report.subject import Pair, Spread, Subject
from sepo.runs.folder import RUN_FILES, read_numbers, read_object, read_recipe
from sepo.runs.log_reader import SETTINGS_FILE, logged_warnings, read_log
from sepo.runs.token_samples_reader import RECORD_FILE
from sepo.score_store import default_store_root, find_store, read_names
from sepo.score_store.chance import Chance
from sepo.score_store.summary import SHARE
from sepo.scoring.chance import store_chance
from sepo.text.template_tokens import NO_TEMPLATE, TEMPLATE_TOKENS, TemplateTokens

T = TypeVar("T")

_STORE_FILES = ("manifest.json", "complete.json", "shard-00000.arrow")
_ABOUT: tuple[str, ...] = ("stage", "objective", "token_scorer")
_LISTED = 5
_NO_CHANCE = "The comparison of the scores with noise cannot be read"


@dataclass(frozen=True)
class _Request:
    """Which tokens are read, see ``read_subject``."""

    pairs: int
    rows: Sequence[int] | None
    spread: bool


def read_subject(
    path: Path, *, name: str | None = None, pairs: int = 200, rows: Sequence[int] | None = None, spread: bool = True
) -> Subject:
    """Read a run or a store.

    Args:
        path: a run's ``output_dir``, a store's directory, or a prefix of a store's key in the default root.
        name: name of the subject; None for the path as given.
        pairs: maximum number of rows that are read with their tokens, evenly spaced over the data set.
        rows: read only these rows, if available.
        spread: whether to read all scores for their distribution.

    Returns:
        The available data, with sentences on unavailable data in ``missing``.

    Raises:
        SepoError: the path is neither a run nor a store.
    """
    given = Path(path).expanduser()
    name = str(path) if name is None else name
    request = _Request(pairs, rows, spread)
    if _is_store(given):
        return _read_store(given.absolute(), name, request)
    if _is_run(given):
        return _read_run(given, name, request)
    if os.path.isdir(given):
        raise SepoError(
            f"'{path}' has neither a run (no {', '.join(RUN_FILES)}) nor a score store (no manifest.json). Name the "
            f"output_dir of a run, or a store from `sepo scores ls`.{_inside(given)}"
        )
    return _read_store(find_store(str(path), root=default_store_root()), name, request)


def _is_store(folder: Path) -> bool:
    return any(os.path.isfile(folder / name) for name in _STORE_FILES)


def _is_run(folder: Path) -> bool:
    if any(os.path.isfile(folder / name) for name in RUN_FILES):
        return True
    return os.path.isdir(folder) and any(folder.glob("checkpoint-*/trainer_state.json"))


def _inside(folder: Path) -> str:
    """Return a sentence that lists the runs and stores in a directory, or the empty string."""
    try:
        found = sorted(str(path) for path in folder.iterdir() if path.is_dir() and (_is_store(path) or _is_run(path)))
    except OSError:
        return ""
    return f" It contains: {', '.join(found[:_LISTED])}." if found else ""


def _attempt(missing: list[str], what: str, read: Callable[[], T], otherwise: T) -> T:
    """Return the result of ``read``; if it fails, append a sentence to ``missing`` and return ``otherwise``."""
    try:
        return read()
    except SepoError as error:
        missing.append(f"{what}: {error}")
    except Exception as error:  # files may have any content, and libraries may raise any exception
        missing.append(f"{what} ({type(error).__name__}: {str(error)[:200]}).")
    return otherwise


def _read_store(path: Path, name: str, request: _Request) -> Subject:
    missing: list[str] = []
    reader = _attempt(missing, "The score store cannot be read", lambda: StoreReader(path, missing), None)
    if reader is None:
        return Subject(name, path, "store", missing=missing)
    method = selecting_method(Selector(SHARE, SHARE))
    names = read_names(path.parent, path.name)
    template = _template(names.pop(TEMPLATE_TOKENS, "{}"))
    return Subject(
        name,
        path,
        "store",
        pairs=_store_pairs(reader, method, request, missing, template),
        rows=reader.rows,
        spreads=_spreads(reader, [], method, request, missing),
        scored_by=store_scored_by(names, reader.store.manifest.identity),
        chance=_attempt(missing, _NO_CHANCE, lambda: _store_chance(reader, request), None),
        settings={**store_settings(reader.store), "names": names},
        missing=missing,
    )


def _read_run(folder: Path, name: str, request: _Request) -> Subject:
    missing: list[str] = []
    consequence = "the settings of the run are unknown (it was killed early, or is of another stage)"
    settings = read_object(folder / SETTINGS_FILE, missing, consequence=consequence)
    recipe, versions = read_recipe(folder, missing)
    nothing: tuple[list[dict[str, Any]], dict[str, Any]] = ([], {})
    numbers, about = _attempt(missing, "The log cannot be read", lambda: read_numbers(folder, missing), nothing)
    settings = settings or {key: about[key] for key in _ABOUT if key in about}
    method, unweighed = _method(settings, missing)
    no_pairs: list[Pair] = []
    recorded = _attempt(missing, f"{RECORD_FILE} cannot be read", lambda: recorded_pairs(folder, missing), no_pairs)
    reader = _store_reader(settings, missing)
    pairs = _run_pairs(settings, reader, recorded, method, request, missing, unweighed=unweighed)
    if not versions and isinstance(settings.get("sepo"), str):
        versions = {"sepo": settings["sepo"]}
    unknown: tuple[Chance | None, dict[str, Any] | None] = (None, None)
    chance, credit = _attempt(missing, _NO_CHANCE, lambda: _logged_scores(folder), unknown)
    return Subject(
        name,
        folder,
        "run",
        pairs=pairs,
        rows=None if reader is None else reader.rows,
        spreads=_spreads(reader, recorded, method, request, missing),
        scored_by=_attempt(missing, "The token scorer cannot be determined", lambda: scored_by(settings), None),
        chance=chance,
        credit=credit,
        warnings=_attempt(missing, "The warnings of the run cannot be read", lambda: logged_warnings(folder), []),
        settings=settings,
        recipe=recipe,
        log=numbers,
        versions=versions,
        missing=missing,
    )


def _store_chance(reader: StoreReader, request: _Request) -> Chance | None:
    return store_chance(reader.store) if request.spread and reader.whole else None


def _logged_scores(folder: Path) -> tuple[Chance | None, dict[str, Any] | None]:
    """Return the comparison of a run's training rows with noise and its result on marked rows, as logged."""
    logged = read_log(folder).scores
    values, credit = (logged.get("scores") or {}).get("train"), logged.get("credit")
    return None if values is None else Chance.of(values), credit if isinstance(credit, dict) else None


def _method(settings: Mapping[str, Any], missing: list[str]) -> tuple[Method | None, str | None]:
    """Return the method with which a run selects and weighs tokens, and why it has no weights, or None."""
    try:
        method = method_of(settings)
    except SepoError as error:
        missing.append(f"The run's selection is unknown, so {SHARE:.0%} of each response are marked: {error}")
        return selecting_method(Selector(SHARE, SHARE)), None
    try:
        return with_weights(method, settings), None
    except SepoError as error:
        return method, str(error)


def _template(values: Any) -> TemplateTokens:
    """Return the tokens of the chat template by their texts, from the settings of a run or, as JSON, the names of a
    store; none if they cannot be read."""
    with suppress(ValueError, RecursionError):
        return TemplateTokens.of_texts(json.loads(values) if isinstance(values, str) else values)
    return NO_TEMPLATE


def _store_reader(settings: Mapping[str, Any], missing: list[str]) -> StoreReader | None:
    """Return the store with the scores of the run's training rows, or None."""
    path = store_of(settings)
    if path is None:
        return None
    if not os.path.isdir(path):
        elsewhere = default_store_root() / path.name
        if not os.path.isdir(elsewhere):
            missing.append(f"The run's score store {path} does not exist any more, so its scores are not shown.")
            return None
        path = elsewhere
    return _attempt(missing, "The run's score store cannot be read", lambda: StoreReader(path, missing), None)


def _store_pairs(
    reader: StoreReader, method: Method | None, request: _Request, missing: list[str], template: TemplateTokens
) -> list[Pair]:
    rows = [row for row in request.rows or () if 0 <= row < reader.rows]
    chosen = evenly(reader.available, request.pairs) if request.rows is None else rows
    none: list[Pair] = []
    return _attempt(missing, "The rows cannot be read", lambda: reader.pairs(chosen, method, template=template), none)


def _run_pairs(
    settings: Mapping[str, Any],
    reader: StoreReader | None,
    recorded: Sequence[Pair],
    method: Method | None,
    request: _Request,
    missing: list[str],
    *,
    unweighed: str | None,
) -> list[Pair]:
    """Return pairs from the store, evenly spaced, if it has the policy's tokens with their texts, and all weights can
    be computed; otherwise those that the run recorded; otherwise pairs from the store as they are."""
    matching = [pair for pair in recorded if request.rows is None or pair.row in request.rows]
    few = [matching[index] for index in evenly(np.arange(len(matching)), request.pairs)]
    complete = reader is not None and reader.store.texts.present and unweighed is None
    if reader is not None and not reader.reads_own_tokens and (complete or not few):
        if unweighed is not None:
            missing.append(f"The weights of the tokens are unknown: {unweighed}.")
        return _store_pairs(reader, method, request, missing, _template(settings.get(TEMPLATE_TOKENS)))
    if few:
        missing.append(_why_recorded(settings, reader, recorded, unweighed=unweighed))
        return few
    if reader is not None:
        how = _same_selection(method, weighed=settings.get("token_weight") is not None)
        missing.append(
            "The scores are of the oracle's tokens, which are not the policy's, and the run did not record the "
            f"policy's: the oracle's tokens are shown, {how}."
        )
        template = _template(settings.get(TEMPLATE_TOKENS))
        return _store_pairs(reader, without_weights(method), request, missing, template)
    if recorded:
        rows = ", ".join(str(row) for row in sorted({pair.row for pair in recorded if pair.row >= 0}))
        missing.append(f"Only the rows that the run recorded can be shown, and none of them was requested: {rows}.")
    elif settings.get("stage") == RTO:
        missing.append(f"A run of stage {RTO} does not record the responses that it samples, so none are shown.")
    else:
        missing.append(f"The run recorded no tokens (no {RECORD_FILE}; older versions wrote none), so none are shown.")
    return []


def _same_selection(method: Method | None, *, weighed: bool) -> str:
    if method is None or method.selector is None:
        return "all of them selected"
    how = "with the same share selected" if method.selector.reads_ratios else "selected by the same rule"
    return f"{how}, without weights" if weighed else how


def _why_recorded(
    settings: Mapping[str, Any], reader: StoreReader | None, recorded: Sequence[Pair], *, unweighed: str | None
) -> str:
    """Return a sentence on why the recorded pairs are shown."""
    steps = sorted(pair.step for pair in recorded if pair.step is not None)
    which = f"the pairs recorded during training ({len(recorded)}, at steps {steps[0]} to {steps[-1]})"
    if reader is not None and reader.reads_own_tokens:
        return (
            f"The oracle's tokens are not the policy's: {which} are shown, in the policy's tokens and with the scores "
            "projected onto them. The distributions over all rows are of the oracle's tokens."
        )
    if reader is not None and unweighed is not None:
        return f"The weights cannot be computed from the run's score store, so {which} are shown: {unweighed}."
    if reader is not None:
        return f"The run's score store has no texts, so {which} are shown. {HOW_TO_GET_TEXTS}."
    if is_live(settings):
        return f"The scores are computed at the step that uses them, so only those of {which} are available."
    if settings.get("token_scorer") == NO_SCORER.name and settings.get("token_rewards") is None:
        return f"The run scores no tokens, so only {which} are shown."
    return f"The scores of all rows are not available (not stored, or removed): only {which} are shown."


def _spreads(
    reader: StoreReader | None, recorded: Sequence[Pair], method: Method | None, request: _Request, missing: list[str]
) -> Mapping[str, Spread]:
    if not request.spread:
        return {}
    largest = method is not None and method.token_scorer.rejected_largest
    what = "The distribution of the scores cannot be read"
    if reader is not None:
        return _attempt(missing, what, lambda: reader.spreads(rejected_largest=largest), {})
    return _attempt(missing, what, lambda: recorded_spreads(recorded, rejected_largest=largest), {})
