"""One measurement of token-level credit: pairs, models and scorers in, results as plain JSON values out.

The results have the schema ``SCHEMA``; its number changes when a change breaks readers::

    schema          "sepo.credit/1"
    sepo            version of this package
    data            source, sha256 (of the rows that were read), rows, responses (measured), left_out
                    {no_token_marked, all_tokens_marked}, tokens, marked_tokens (of the measured responses), preceded
                    (responses with a right token before the first error), spans {type: count}, spans_cut (entirely
                    truncated), languages {code: rows}; read, if a public data set was read from its files: path, rows,
                    pairs, unpaired, left_out {reason: rows}, licence, url
    reading         template (null: the tokenizer's chat template), cutoff_len, dtype (null: the host's choice),
                    end_of_turn ("counted" or "left out")
    models          model, oracle, oracle_base, reference: null or {model, adapters, quantization_bit}; and of
                    further oracles, if scores are means, oracle_2, oracle_base_2, ...
    settings        ratio, rule, seed, bootstrap (samples), interval (0.95), random_draws
    best_possible   precision and recall, at the ratio, of a scorer that ranks every marked token first
    scorers         by name: auroc, average_precision, precision, recall, first_error, first_error_auroc, each {mean,
                    low, high} (the last is missing if no response is preceded); by_type: by type of error: responses,
                    auroc, average_precision, recall; by_language: by code: responses and the measures
    differences     a list of {first, second, auroc, ...}: first minus second, paired by response
    levels          span and step (see ``sepo.credit.units``): null if no response has a right and a wrong unit, or
                    responses, left_out, units, marked_units, preceded, best_possible, scorers and differences
    seconds         duration of scoring, for all data sets of the command, and of this evaluation

The results of several data sets are ``{"schema": "sepo.credit_suite/1", "sepo": ..., "sets": {name: results}}``.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from sepo import __version__
from sepo.credit.data import LabelledPair
from sepo.credit.evaluate import MarkedResponse, Scores, evaluate
from sepo.credit.host import OpenHost
from sepo.credit.measures import Array
from sepo.credit.reading import lost_errors, mark, text_mask
from sepo.credit.scored import CreditRequest, ScoredPairs, score_pairs
from sepo.credit.scorers import CreditModels
from sepo.credit.units import of_units, span_units, unit_scores
from sepo.errors import SepoError
from sepo.recipe.model_specs import ModelSpec

SCHEMA = "sepo.credit/1"
SUITE_SCHEMA = "sepo.credit_suite/1"

_MOST_DRAWS = 100_000
"""Maximum number of random draws over all responses; the mean over many responses needs few draws of each."""


def measure(
    pairs: Sequence[LabelledPair], request: CreditRequest, *, open_host: OpenHost, progress: bool = False
) -> dict[str, Any]:
    """Evaluate scorers on pairs.

    Args:
        pairs: see ``score_pairs``.
        request: see ``score_pairs``.
        open_host: see ``score_pairs``.
        progress: see ``score_pairs``.

    Returns:
        Plain JSON values with the schema in the docstring of this module.

    Raises:
        SepoError: see ``score_pairs``; or no response can be measured.
    """
    return measure_sets({request.source: pairs}, request, open_host=open_host, progress=progress)[request.source]


def measure_sets(
    sets: Mapping[str, Sequence[LabelledPair]], request: CreditRequest, *, open_host: OpenHost, progress: bool = False
) -> dict[str, dict[str, Any]]:
    """Evaluate scorers on several data sets; every model is loaded once.

    Args:
        sets: pairs by name of the set.
        request: the settings; its ``source`` is not used.
        open_host: see ``score_pairs``.
        progress: see ``score_pairs``.

    Returns:
        By set, the value of ``measure``; ``seconds`` is the duration of the scoring of all sets and of the evaluation
        of this one.

    Raises:
        SepoError: see ``measure``.
    """
    started = time.monotonic()
    draws = max(1, _MOST_DRAWS // max(1, sum(map(len, sets.values()))))
    request = replace(request, random_draws=min(request.random_draws, draws))
    scored = score_pairs([pair for of in sets.values() for pair in of], request, open_host=open_host, progress=progress)
    spent, found, first = time.monotonic() - started, {}, 0
    for name, pairs in sets.items():
        started = time.monotonic()
        part = scored.part(slice(first, first + len(pairs)))
        first += len(pairs)
        try:
            found[name] = _result(pairs, part, replace(request, source=name))
        except SepoError as error:
            raise SepoError(f"{name}: {error}") from error
        found[name]["seconds"] = round(spent + time.monotonic() - started, 1)
    return found


def as_one(results: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    """Return the results of ``measure_sets`` as one JSON value: those of a single set as they are."""
    if len(results) == 1:
        return next(iter(results.values()))
    return {"schema": SUITE_SCHEMA, "sepo": __version__, "sets": dict(results)}


def _result(pairs: Sequence[LabelledPair], scored: ScoredPairs, request: CreditRequest) -> dict[str, Any]:
    reads, scores, steps = scored.reads, scored.scores, scored.steps
    if request.text_only:
        masks = [text_mask(read) for read in reads]
        scores = {
            name: [[row[kept] for row, kept in zip(draw, masks, strict=True)] for draw in draws]
            for name, draws in scores.items()
        }
        steps = [row[kept] for row, kept in zip(steps, masks, strict=True)]
    marked = [mark(pair, read, text_only=request.text_only) for pair, read in zip(pairs, reads, strict=True)]
    found = _evaluated(marked, scores, request)
    counts = {name: found.pop(name) for name in ("responses", "left_out", "tokens", "marked_tokens", "preceded")}
    languages = Counter(pair.language for pair in pairs if pair.language)
    return {
        "schema": SCHEMA,
        "sepo": __version__,
        "data": {
            "source": request.source,
            "sha256": _digest(pairs),
            "rows": len(pairs),
            **counts,
            "spans": dict(sorted(Counter(span.type for pair in pairs for span in pair.spans).items())),
            "spans_cut": lost_errors(pairs, reads),
            "languages": dict(sorted(languages.items())),
        },
        **_settings(request),
        **found,
        "levels": {
            "span": _at_level(marked, scores, [span_units(response) for response in marked], request),
            "step": _at_level(marked, scores, steps, request),
        },
        "seconds": 0.0,
    }


def _evaluated(responses: Sequence[MarkedResponse], scores: Mapping[str, Scores], request: CreditRequest) -> Any:
    return evaluate(responses, scores, ratio=request.ratio, samples=request.bootstrap, seed=request.seed).as_dict()


def _at_level(
    marked: Sequence[MarkedResponse], scores: Mapping[str, Scores], units: Sequence[Array], request: CreditRequest
) -> dict[str, Any] | None:
    """Return the results at a level; None if no response has both a wrong and a right unit."""
    responses = [of_units(response, of) for response, of in zip(marked, units, strict=True)]
    if not any(response.measurable for response in responses):
        return None
    made = {
        name: [[unit_scores(row, of) for row, of in zip(draw, units, strict=True)] for draw in draws]
        for name, draws in scores.items()
    }
    found = _evaluated(responses, made, request)
    return {"units": found.pop("tokens"), "marked_units": found.pop("marked_tokens"), **found}


def _settings(request: CreditRequest) -> dict[str, Any]:
    """Return the settings of a request as plain JSON values."""
    return {
        "reading": {
            "template": request.template,
            "cutoff_len": request.cutoff_len,
            "dtype": request.dtype,
            "end_of_turn": "left out" if request.text_only else "counted",
        },
        "models": _models(request.models),
        "settings": {
            "ratio": request.ratio,
            "rule": "floor",
            "seed": request.seed,
            "bootstrap": request.bootstrap,
            "interval": 0.95,
            "random_draws": request.random_draws,
        },
    }


def _models(models: CreditModels) -> dict[str, Any]:
    oracle = models.oracle
    named: Mapping[str, ModelSpec | None] = {
        "model": models.model,
        "oracle": None if oracle is None else oracle.oracle,
        "oracle_base": None if oracle is None else oracle.base,
        "reference": models.reference,
    }
    found = {name: None if spec is None else spec.as_dict() for name, spec in named.items()}
    for number, more in enumerate(models.more_oracles, start=2):
        found |= {f"oracle_{number}": more.oracle.as_dict(), f"oracle_base_{number}": more.base.as_dict()}
    return found


def _digest(pairs: Sequence[LabelledPair]) -> str:
    digest = hashlib.sha256()
    for pair in pairs:
        spans = [[span.start, span.end, span.type] for span in pair.spans]
        parts = [*([pair.steps] if pair.steps else []), *([pair.unlabelled] if pair.unlabelled else [])]
        digest.update(json.dumps([pair.conversation, spans, *parts], ensure_ascii=True, sort_keys=True).encode())
    return digest.hexdigest()
