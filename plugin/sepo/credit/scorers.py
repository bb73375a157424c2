"""Token scorers of the benchmark, by name: the models that each needs, and scores with the sign that low = wrong.

The names are those that ``token_scorer`` takes in a recipe (registered ones too), and more: ``oracle_centered``,
``oracle_step_mean`` and ``oracle_first_error``, what ``oracle_scores`` makes of an oracle's; ``surprisal``, the usual
name of ``confidence``; ``surprisal_centered``, log pi plus the entropy at the position; ``position``, a baseline that
ranks later tokens lower, as errors come late in some data; and ``store:DIR``, the scores that a run stored for the same
rows. Of several oracles the scores are averaged. A scorer is
evaluated by what training would select from a rejected response: if training selects the lowest scores, they are used
as they are; if it selects the highest (``policy_ref``, ``confidence``, some registered ones), they are negated.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from sepo.credit.measures import Array
from sepo.errors import SepoError, nearest
from sepo.objectives import LiveTokens, RowTokens, TokenScorer, available_scorers
from sepo.objectives.presets import find_scorer
from sepo.recipe.model_specs import ModelSpec, OracleSpec
from sepo.score_store import ScoreStore
from sepo.scoring.custom_results import scores_of_row, scores_of_rows
from sepo.selection.estimators import ORACLE_SCORES, first_error_scores, mean_scores, step_mean_scores
from sepo.selection.scores import oracle_scores, random_scores
from sepo.text.token_texts import TokenTexts
from sepo.training.reward_columns import REWARD_COLUMNS
from sepo.training.selection_columns import SCORE_COLUMNS

STORE = "store:"
SURPRISAL = "surprisal"
SURPRISAL_CENTERED = "surprisal_centered"
POSITION = "position"
ORACLE = "oracle"
_OF_ORACLES = {f"{ORACLE}_{made}": made for made in ORACLE_SCORES if made != "ratio"}
"""What is made of an oracle's scores, by the name of the scorer."""
_NOT_HERE = ("file", "none")


@dataclass(frozen=True)
class CreditModels:
    """The models that scorers may need.

    Args:
        model: model for surprisal and contrastive rewards, and the policy of ``policy_ref``.
        oracle: the oracle with its base.
        reference: reference of ``policy_ref``.
        more_oracles: further oracles, whose scores are averaged with those of the first.
    """

    model: ModelSpec | None = None
    oracle: OracleSpec | None = None
    reference: ModelSpec | None = None
    more_oracles: tuple[OracleSpec, ...] = ()

    @property
    def oracles(self) -> tuple[OracleSpec, ...]:
        """All oracles."""
        return () if self.oracle is None else (self.oracle, *self.more_oracles)


@dataclass(frozen=True)
class Scorer:
    """One scorer of a measurement.

    Args:
        name: name as given by the user.
        definition: the token scorer of a recipe; None for a store, ``position`` and ``surprisal_centered``.
        store: the directory of a store, or None.
        made: what is made of an oracle's scores, one of ``ORACLE_SCORES``.
    """

    name: str
    definition: TokenScorer | None = None
    store: Path | None = None
    made: str = "ratio"

    @property
    def kind(self) -> str:
        """``store``, ``oracle``, ``contrastive``, ``random``, ``live``, ``row`` or ``batch``; or the name."""
        if self.definition is None:
            return self.name if self.store is None else "store"
        if self.definition.from_logps is not None:
            return "live"
        if self.definition.from_batch is not None:
            return "batch"
        return "row" if self.definition.from_row is not None else self.definition.name

    @property
    def sign(self) -> float:
        """Factor of its scores such that low = wrong."""
        return -1.0 if self.definition is not None and self.definition.rejected_largest else 1.0

    def log_probs(self, models: CreditModels) -> tuple[ModelSpec, ...]:
        """Return the models under which it needs the log-probabilities of the responses."""
        if self.kind == ORACLE:
            pairs = () if self.made == "centered" else models.oracles
            return tuple(spec for pair in pairs for spec in (pair.oracle, pair.base))
        if self.kind != "live" or models.model is None or self.definition is None:
            return ()
        with_reference = self.definition.compares_with_reference and models.reference is not None
        return (models.model, models.reference) if with_reference and models.reference else (models.model,)


def find_scorers(names: Sequence[str], models: CreditModels) -> list[Scorer]:
    """Look up scorers by name and check that the models that they need are given.

    Args:
        names: names as given by the user.
        models: the given models.

    Raises:
        SepoError: a name is unknown, repeated or not supported here, or a model is missing.
    """
    if not names or len(set(names)) != len(names):
        raise SepoError(f"--scorers is {', '.join(names) or 'empty'}; expected at least one scorer, each once.")
    return [_found(name, models) for name in names]


def _found(name: str, models: CreditModels) -> Scorer:
    if name.startswith(STORE):
        folder = Path(name.removeprefix(STORE)).expanduser()
        if not (folder / "manifest.json").is_file():
            raise SepoError(f"--scorers {name}: {folder} is not a score store; `sepo scores ls` lists the stores.")
        return Scorer(name, store=folder)
    if name == POSITION:
        return Scorer(name)
    if name == SURPRISAL_CENTERED:
        if models.model is None:
            raise SepoError(f"--scorers: {name} needs a model that scores: set --model.")
        return Scorer(name)
    known = (
        SURPRISAL,
        SURPRISAL_CENTERED,
        *_OF_ORACLES,
        POSITION,
        *(scorer for scorer in available_scorers() if scorer not in _NOT_HERE),
        f"{STORE}DIR",
    )
    recipe_name = "confidence" if name == SURPRISAL else ORACLE if name in _OF_ORACLES else name
    if name in _NOT_HERE or recipe_name not in available_scorers():
        raise SepoError(f"--scorers: unknown '{name}', expected some of {', '.join(known)}.{nearest(name, known)}")
    scorer = Scorer(name, definition=find_scorer(recipe_name), made=_OF_ORACLES.get(name, "ratio"))
    missing = _missing(scorer, models)
    if missing:
        raise SepoError(f"--scorers: {name} needs {missing}.")
    return scorer


def _missing(scorer: Scorer, models: CreditModels) -> str | None:
    definition = scorer.definition
    assert definition is not None
    if scorer.kind == ORACLE and models.oracle is None:
        return "an oracle: set --oracle-model or --oracle-adapters (and the model it was trained from: --oracle-base)"
    if scorer.kind in ("contrastive", "live") and models.model is None:
        return "a model that scores: set --model"
    if definition.compares_with_reference and models.reference is None:
        return "a reference besides --model: set --ref-model or --ref-adapters"
    return None


@dataclass(frozen=True)
class Answer:
    """The tokens of one rejected response.

    Args:
        input_ids: token ids of prompt and response.
        start: index of the first measured token.
    """

    input_ids: tuple[int, ...]
    start: int

    @property
    def tokens(self) -> int:
        """Number of measured tokens."""
        return len(self.input_ids) - self.start


def made_of_oracles(made: str, scores: Sequence[Sequence[Tensor]], lines: Sequence[Array]) -> list[Array]:
    """Return what is made of the scores of oracles.

    Args:
        made: one of ``ORACLE_SCORES``; the scores that are to be ``centered`` already are.
        scores: by oracle, the scores [T] of each response.
        lines: int [T] of each response, the number of each token's line or sentence.
    """
    rows = [mean_scores(members) for members in zip(*scores, strict=True)]
    if made == "step_mean":
        rows = [step_mean_scores(row, steps.tolist()) for row, steps in zip(rows, lines, strict=True)]
    if made == "first_error":
        rows = [first_error_scores(row) for row in rows]
    return [row.numpy() for row in rows]


def log_ratios(oracle: Sequence[Tensor], base: Sequence[Tensor]) -> list[Tensor]:
    """Return the scores [T] of each response from its log-probabilities under an oracle and its base."""
    return [oracle_scores(*both) for both in zip(oracle, base, strict=True)]


def live_scores(scorer: Scorer, policy: Array, reference: Array | None) -> Array:
    """Return the scores of a live scorer, which training calls at every step, from log-probabilities [T] in nats."""
    assert scorer.definition is not None
    assert scorer.definition.from_logps is not None
    logps = [None if row is None else torch.from_numpy(np.asarray(row))[None] for row in (policy, reference)]
    assert logps[0] is not None
    mask = torch.ones_like(logps[0], dtype=torch.bool)
    scores = scorer.definition.from_logps(LiveTokens(logps[0], logps[1], mask, chosen=False))
    return scores[0].numpy()


def read_scores(
    scorer: Scorer, answers: Sequence[Answer], *, texts: TokenTexts, device: torch.device, batch_tokens: int
) -> list[Array]:
    """Return the scores of a registered scorer that takes tokens and their texts."""
    definition = scorer.definition
    assert definition is not None
    rows = [
        RowTokens(
            answer.input_ids[: answer.start],
            answer.input_ids[answer.start :],
            tuple(texts.pieces(answer.input_ids[answer.start :])),
            chosen=False,
        )
        for answer in answers
    ]
    if definition.from_batch is None:
        return [scores_of_row(definition, row) for row in rows]
    return scores_of_rows(scorer.name, definition.from_batch.load(device), rows, batch_tokens=batch_tokens)


def random_draws(answers: Sequence[Answer], *, seed: int, draws: int) -> list[list[Array]]:
    """Return random scores, drawn as in training, with the seeds ``seed``, ``seed`` + 1, ..."""
    return [
        [
            random_scores(answer.input_ids, start=answer.start, seed=seed + draw, side="rejected").numpy()
            for answer in answers
        ]
        for draw in range(draws)
    ]


def position_scores(answers: Sequence[Answer]) -> list[Array]:
    """Return scores that fall with the position: 0, -1, -2, ..."""
    return [-np.arange(answer.tokens, dtype=np.float64) for answer in answers]


def stored_scores(scorer: Scorer, answers: Sequence[Answer]) -> list[Array]:
    """Return the scores of rejected responses in a store.

    Raises:
        SepoError: the store is unfinished, has no scores, or has scores of other responses.
    """
    assert scorer.store is not None
    store = ScoreStore.at(scorer.store)
    if not store.finished:
        raise SepoError(f"{scorer.name} is unfinished: it has {store.rows_written} of {store.manifest.rows} rows.")
    known = (SCORE_COLUMNS[1], REWARD_COLUMNS[1])
    column = next((name for name in known if name in store.manifest.columns), None)
    if column is None:
        raise SepoError(f"{scorer.name} has {', '.join(store.manifest.columns)}, expected {' or '.join(known)}.")
    rows = [np.asarray(row, dtype=np.float32) for row in store.table().column(column).to_pylist()]
    if len(rows) != len(answers):
        raise SepoError(
            f"{scorer.name} has scores of {len(rows)} rows, but the data has {len(answers)}: measure a store on the "
            "rows that it was made from, all of them and in the same order."
        )
    for index, (row, answer) in enumerate(zip(rows, answers, strict=True)):
        if len(row) != answer.tokens:
            raise SepoError(
                f"{scorer.name}: row {index} has {len(row)} scores, but its rejected response has {answer.tokens} "
                "tokens; use the data, --model, --template and --cutoff-len that the store was made with."
            )
    return [_stored_sign(store) * row for row in rows]


def _stored_sign(store: ScoreStore) -> float:
    """Return the sign of stored scores: a registered scorer may select the highest scores of rejected responses."""
    name = str(store.manifest.identity.get("scorer", ""))
    return -1.0 if name in available_scorers() and find_scorer(name).rejected_largest else 1.0
