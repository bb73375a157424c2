"""Scoring of pairs for a measurement: tokens, log-probabilities under every model, and the scores of every scorer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor
from tqdm import tqdm

from sepo.credit.data import LabelledPair
from sepo.credit.evaluate import Scores
from sepo.credit.host import CreditHost, NamedSpec, OpenHost
from sepo.credit.measures import Array
from sepo.credit.reading import ChatTemplateReader, Reader, lines_of, steps_of
from sepo.credit.scorers import (
    ORACLE,
    POSITION,
    SURPRISAL_CENTERED,
    Answer,
    CreditModels,
    Scorer,
    find_scorers,
    live_scores,
    log_ratios,
    made_of_oracles,
    position_scores,
    random_draws,
    read_scores,
    stored_scores,
)
from sepo.errors import SepoError
from sepo.forward.centered import CenteredLogProbScorer, CenteredOracleScorer
from sepo.forward.revision_rewards import ContrastiveScorer
from sepo.forward.sequences import (
    DEFAULT_BATCH_TOKENS,
    LogProbScorer,
    ScoredSequence,
    ScoringModel,
    SequenceScorer,
)
from sepo.recipe.model_specs import ModelSpec, OracleSpec
from sepo.text.chat_encoding import ReadResponse
from sepo.text.token_texts import TokenTexts


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
        random_draws: number of draws of random scores, fewer if there are very many responses; their measures are
            averaged within each response.
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
    numbers = _model_numbers(host, reader, pairs, reads, scorers, request, progress)
    return ScoredPairs(reads, steps, _scores(host, reads, scorers, request, numbers))


def _named(models: CreditModels) -> list[NamedSpec]:
    """Return the models, each with the setting that names it; the tokenizer of the first one is used."""
    oracles = [(key, spec) for pair in models.oracles
               for key, spec in (("oracle_base_model", pair.base), ("oracle_model", pair.oracle))]  # fmt: skip
    found = [("model_name_or_path", models.model), *oracles, ("ref_model", models.reference)]
    return [(key, spec) for key, spec in dict.fromkeys(found) if spec is not None]


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


@dataclass
class _Numbers:
    """What the models give for each response, in nats.

    Args:
        logps: log-probabilities [T] by model.
        centered: scores [T] by oracle, centered by what its base expects.
        excess: log-probabilities [T] under the model, centered by what it expects.
        rewards: contrastive rewards [T].
    """

    logps: dict[ModelSpec, list[Tensor]] = field(default_factory=dict)
    centered: dict[OracleSpec, list[Tensor]] = field(default_factory=dict)
    excess: list[Array] = field(default_factory=list)
    rewards: list[Array] = field(default_factory=list)


def _scores(
    host: CreditHost,
    reads: Sequence[ReadResponse],
    scorers: Sequence[Scorer],
    request: CreditRequest,
    numbers: _Numbers,
) -> dict[str, Scores]:
    """Return the scores of every scorer, low = wrong, in the order of the scorers.

    Args:
        host: for its tokenizer and device.
        reads: the tokenized responses.
        scorers: the scorers.
        request: the settings.
        numbers: from ``_model_numbers``.
    """
    answers = [Answer(tuple(read.input_ids), read.response_start) for read in reads]
    texts = TokenTexts(host.tokenizer)
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
            rows = numbers.rewards
        elif scorer.kind == SURPRISAL_CENTERED:
            rows = numbers.excess
        elif scorer.kind == ORACLE:
            lines = [lines_of(read, texts) for read in reads] if scorer.made == "step_mean" else []
            rows = made_of_oracles(scorer.made, _of_oracles(scorer, request.models, numbers), lines)
        elif scorer.kind == "live":
            first, *rest = (numbers.logps[spec] for spec in scorer.log_probs(request.models))
            second = rest[0] if rest else [None] * len(first)
            rows = [
                live_scores(scorer, policy.numpy(), None if reference is None else reference.numpy())
                for policy, reference in zip(first, second, strict=True)
            ]
        else:
            rows = read_scores(
                scorer,
                answers,
                texts=texts,
                device=host.device,
                batch_tokens=request.batch_tokens,
            )
        made[scorer.name] = [[scorer.sign * row for row in rows]]
    return made


def _of_oracles(scorer: Scorer, models: CreditModels, numbers: _Numbers) -> list[list[Tensor]]:
    """Return the scores of each response by every oracle."""
    if scorer.made == "centered":
        return [numbers.centered[oracle] for oracle in models.oracles]
    return [log_ratios(numbers.logps[oracle.oracle], numbers.logps[oracle.base]) for oracle in models.oracles]


def _model_numbers(
    host: CreditHost,
    reader: Reader,
    pairs: Sequence[LabelledPair],
    reads: Sequence[ReadResponse],
    scorers: Sequence[Scorer],
    request: CreditRequest,
    progress: bool,
) -> _Numbers:
    """Return what the models give for the responses.

    Each model is loaded once, but a base that several oracles share once with each of them.
    """
    models, numbers = request.models, _Numbers()
    needed = [spec for scorer in scorers for spec in scorer.log_probs(models)]
    names = {scorer.kind for scorer in scorers}
    prompted = models.model if "contrastive" in names else None
    excess_of = models.model if SURPRISAL_CENTERED in names else None
    centered = any(scorer.made == "centered" for scorer in scorers)
    sequences = [ScoredSequence(read.input_ids, read.response_start) for read in reads]
    prompts = [reader.contrastive(*both) for both in zip(pairs, reads, strict=True)] if prompted else []

    def run(scorer: SequenceScorer, spec: ModelSpec, what: str) -> list[Tensor]:
        with _bar(spec, what, len(sequences), progress) as bar:
            return scorer.score(sequences, on_batch=bar.update)

    def read_by(spec: ModelSpec, model: ScoringModel) -> None:
        budget = {"batch_tokens": request.batch_tokens}
        if spec in needed and spec not in numbers.logps:
            numbers.logps[spec] = run(LogProbScorer(model, **budget), spec, "log-probabilities")
        if spec == excess_of and not numbers.excess:
            numbers.excess = [row.numpy() for row in run(CenteredLogProbScorer(model, **budget), spec, "entropies")]
        if spec == prompted and not numbers.rewards:
            with _bar(spec, "contrastive prompts", len(prompts), progress) as bar:
                contrastive = ContrastiveScorer(model, **budget)
                numbers.rewards = [row.numpy() for row in contrastive.score(prompts, on_batch=bar.update)]

    oracles = models.oracles if any(scorer.kind == ORACLE for scorer in scorers) else ()
    for oracle, trained, base in host.each_oracle(oracles):
        for spec, model in ((oracle.oracle, trained), (oracle.base, base)):
            read_by(spec, model)
        if centered:
            both = CenteredOracleScorer(oracle=trained, base=base, batch_tokens=request.batch_tokens)
            numbers.centered[oracle] = run(both, oracle.oracle, "centered scores")
    loaded = {spec for oracle in oracles for spec in (oracle.oracle, oracle.base)}
    others = [*needed, *(spec for spec in (prompted, excess_of) if spec is not None)]
    for spec, model in host.each_model([spec for spec in others if spec not in loaded]):
        read_by(spec, model)
    return numbers


def _bar(spec: ModelSpec, what: str, responses: int, progress: bool) -> Any:
    name = " + ".join(Path(part).name for part in (spec.model, *spec.adapters))
    return tqdm(total=responses, desc=f"{what} under {name}", unit="response", disable=not progress)
