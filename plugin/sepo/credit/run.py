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
    models          model, oracle, oracle_base, reference: null or {model, adapters, quantization_bit}
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
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor
from tqdm import tqdm

from sepo import __version__
from sepo.credit.data import LabelledPair
from sepo.credit.evaluate import MarkedResponse, Scores, evaluate
from sepo.credit.host import CreditHost, NamedSpec, OpenHost
from sepo.credit.reading import ChatTemplateReader, Reader, lost_errors, mark, steps_of, text_mask
from sepo.credit.scorers import (
    POSITION,
    Answer,
    CreditModels,
    Scorer,
    find_scorers,
    live_scores,
    position_scores,
    random_draws,
    read_scores,
    stored_scores,
)
from sepo.credit.units import of_units, span_units, unit_scores
from sepo.errors import SepoError
from sepo.forward.revision_rewards import ContrastiveScorer
from sepo.forward.sequences import DEFAULT_BATCH_TOKENS, LogProbScorer, ScoredSequence
from sepo.recipe.model_specs import ModelSpec
from sepo.selection.scores import oracle_scores
from sepo.text.chat_encoding import ReadResponse
from sepo.text.token_texts import TokenTexts

SCHEMA = "sepo.credit/1"
SUITE_SCHEMA = "sepo.credit_suite/1"

Array = np.ndarray


@dataclass(frozen=True)
class CreditRequest:
    """Data, scorers, models and settings of a measurement.

    Args:
        source: name of the data.
        scorers: names of scorers, see ``find_scorers``.
        models: the given models.
        template: name of a template of the host, or None for the tokenizer's chat template.
        cutoff_len: maximum tokens of a conversation with its response.
        dtype: ``fp32``, ``bf16`` or ``fp16``, or None for the host's choice.
        ratio: share of a response's tokens that is selected.
        text_only: exclude tokens that cover no character of the response.
        seed: seed of the bootstrap and of random scores.
        bootstrap: number of bootstrap samples.
        random_draws: number of draws of random scores; their measures are averaged within each response.
        batch_tokens: tokens per scoring batch.
    """

    source: str
    scorers: Sequence[str]
    models: CreditModels = field(default_factory=CreditModels)
    template: str | None = None
    cutoff_len: int = 2048
    dtype: str | None = None
    ratio: float = 0.3
    text_only: bool = False
    seed: int = 0
    bootstrap: int = 1000
    random_draws: int = 100
    batch_tokens: int = DEFAULT_BATCH_TOKENS


@dataclass(frozen=True)
class ScoredPairs:
    """Tokenized pairs with the scores of every scorer.

    Args:
        reads: the tokenized rejected responses; the tokens from ``response_start`` on are measured.
        steps: int [T] per response, the number of each token's step.
        scores: by scorer, draws (one unless it is random) with an array [T] per response, low = wrong.
    """

    reads: Sequence[ReadResponse]
    steps: Sequence[Array]
    scores: Mapping[str, Scores]

    def part(self, rows: slice) -> ScoredPairs:
        """Return the tokens and scores of some of the pairs."""
        scores = {name: [draw[rows] for draw in draws] for name, draws in self.scores.items()}
        return ScoredPairs(self.reads[rows], self.steps[rows], scores)


def score_pairs(
    pairs: Sequence[LabelledPair], request: CreditRequest, *, open_host: OpenHost, progress: bool = False
) -> ScoredPairs:
    """Compute the scores of all scorers.

    Args:
        pairs: from ``sepo.credit.data``.
        request: the settings.
        open_host: opens the host whose templates and models are used.
        progress: whether to show a progress bar for every model on standard error.

    Raises:
        SepoError: a model or a scorer is missing or unsuitable, or the spans of a response cannot be aligned.
    """
    scorers = find_scorers(request.scorers, request.models)
    named = _named(request.models)
    if not named:
        raise SepoError("no model is given, but a tokenizer is needed: set --model (only its tokenizer is loaded).")
    host = open_host(named[0], template=request.template, cutoff_len=request.cutoff_len, dtype=request.dtype)
    host.check(named)
    reader = _reader(host, scorers, request)
    reads = [reader.read(pair) for pair in pairs]
    texts = TokenTexts(host.tokenizer)
    steps = [steps_of(pair, read, texts) for pair, read in zip(pairs, reads, strict=True)]
    return ScoredPairs(reads, steps, _scores(host, reader, pairs, reads, scorers, request, progress))


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


def _named(models: CreditModels) -> list[NamedSpec]:
    """Return the models, each with the setting that names it; the tokenizer of the first one is used."""
    oracle = models.oracle
    found = [
        ("model_name_or_path", models.model),
        ("oracle_base_model", None if oracle is None else oracle.base),
        ("oracle_model", None if oracle is None else oracle.oracle),
        ("ref_model", models.reference),
    ]
    return [(key, spec) for key, spec in found if spec is not None]


def _reader(host: CreditHost, scorers: Sequence[Scorer], request: CreditRequest) -> Reader:
    if request.template is None:
        return ChatTemplateReader(
            host.tokenizer,
            name=f"'{host.spec.model}'",
            chat_template=host.chat_template(),
            max_tokens=request.cutoff_len,
        )
    prompts = any(scorer.kind == "contrastive" for scorer in scorers) and request.models.model is not None
    prompted = ("model_name_or_path", request.models.model) if prompts and request.models.model else None
    return host.template_reader(prompted=prompted)


def _scores(
    host: CreditHost,
    reader: Reader,
    pairs: Sequence[LabelledPair],
    reads: Sequence[ReadResponse],
    scorers: Sequence[Scorer],
    request: CreditRequest,
    progress: bool,
) -> dict[str, Scores]:
    """Return the scores of every scorer, low = wrong, in the order of the scorers."""
    answers = [Answer(tuple(read.input_ids), read.response_start) for read in reads]
    logps, rewards = _model_numbers(host, reader, pairs, reads, scorers, request, progress)
    made: dict[str, Scores] = {}
    for scorer in scorers:
        if scorer.kind == "random":
            made[scorer.name] = random_draws(answers, seed=request.seed, draws=request.random_draws)
            continue
        if scorer.kind == POSITION:
            rows = position_scores(answers)
        elif scorer.kind == "store":
            rows = stored_scores(scorer, answers)
        elif scorer.kind == "contrastive":
            rows = rewards
        elif scorer.kind in ("oracle", "live"):
            first, *rest = (logps[spec] for spec in scorer.log_probs(request.models))
            second = rest[0] if rest else [None] * len(first)
            rows = [_compared(scorer, *both) for both in zip(first, second, strict=True)]
        else:
            rows = read_scores(
                scorer,
                answers,
                texts=TokenTexts(host.tokenizer),
                device=host.device,
                batch_tokens=request.batch_tokens,
            )
        made[scorer.name] = [[scorer.sign * row for row in rows]]
    return made


def _compared(scorer: Scorer, first: Tensor, second: Tensor | None) -> Array:
    if scorer.kind == "oracle":
        assert second is not None
        return oracle_scores(first, second).numpy()
    return live_scores(scorer, first.numpy(), None if second is None else second.numpy())


def _model_numbers(
    host: CreditHost,
    reader: Reader,
    pairs: Sequence[LabelledPair],
    reads: Sequence[ReadResponse],
    scorers: Sequence[Scorer],
    request: CreditRequest,
    progress: bool,
) -> tuple[dict[ModelSpec, list[Tensor]], list[Array]]:
    """Return the log-probabilities of the responses by model, and contrastive rewards; each model is loaded once."""
    needed = [spec for scorer in scorers for spec in scorer.log_probs(request.models)]
    prompted = request.models.model if any(scorer.kind == "contrastive" for scorer in scorers) else None
    logps: dict[ModelSpec, list[Tensor]] = {}
    rewards: list[Array] = []
    sequences = [ScoredSequence(read.input_ids, read.response_start) for read in reads]
    prompts = [reader.contrastive(*both) for both in zip(pairs, reads, strict=True)] if prompted else []
    specs = needed if prompted is None else [*needed, prompted]
    for spec, model in host.each_model(specs, request.models.oracle):
        if spec in needed:
            with _bar(spec, "log-probabilities", len(sequences), progress) as bar:
                scorer = LogProbScorer(model, batch_tokens=request.batch_tokens)
                logps[spec] = scorer.score(sequences, on_batch=bar.update)
        if spec == prompted:
            with _bar(spec, "contrastive prompts", len(prompts), progress) as bar:
                contrastive = ContrastiveScorer(model, batch_tokens=request.batch_tokens)
                rewards = [row.numpy() for row in contrastive.score(prompts, on_batch=bar.update)]
    return logps, rewards


def _bar(spec: ModelSpec, what: str, responses: int, progress: bool) -> Any:
    name = " + ".join(Path(part).name for part in (spec.model, *spec.adapters))
    return tqdm(total=responses, desc=f"{what} under {name}", unit="response", disable=not progress)


def _models(models: CreditModels) -> dict[str, Any]:
    oracle = models.oracle
    named: Mapping[str, ModelSpec | None] = {
        "model": models.model,
        "oracle": None if oracle is None else oracle.oracle,
        "oracle_base": None if oracle is None else oracle.base,
        "reference": models.reference,
    }
    return {name: None if spec is None else spec.as_dict() for name, spec in named.items()}


def _digest(pairs: Sequence[LabelledPair]) -> str:
    digest = hashlib.sha256()
    for pair in pairs:
        spans = [[span.start, span.end, span.type] for span in pair.spans]
        parts = [*([pair.steps] if pair.steps else []), *([pair.unlabelled] if pair.unlabelled else [])]
        digest.update(json.dumps([pair.conversation, spans, *parts], ensure_ascii=True, sort_keys=True).encode())
    return digest.hexdigest()
