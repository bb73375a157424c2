"""Scores that are made of those of oracles: their mean, the means of steps, less weight after the first error.

Every oracle has a store of its own, which a run with this oracle alone finds, too; the combined scores have another.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from datasets import Dataset

from sepo.errors import SepoError
from sepo.recipe.settings import RunSettings
from sepo.scoring.live_columns import step_columns
from sepo.scoring.oracle import DatasetScorer, OracleScores
from sepo.scoring.oracle_members import oracle_members
from sepo.scoring.projected import PlaceResponse, ProjectedScorer, oracle_reader
from sepo.scoring.row_texts import PolicyTokens
from sepo.scoring.store_names import oracle_name
from sepo.scoring.stored_columns import StoredScores, host_identity
from sepo.selection.estimators import (
    FIRST_ERROR_DECAY,
    FIRST_ERROR_SHARE,
    first_error_scores,
    mean_scores,
    step_mean_scores,
)
from sepo.text.chat_encoding import ChatReader
from sepo.text.template_tokens import NO_TEMPLATE, TemplateTokens
from sepo.text.token_texts import TokenTexts
from sepo.training.selection_columns import SCORE_COLUMNS, STEP_COLUMNS

OracleReaders = Sequence[ChatReader | None]
"""The conversation reader of each oracle of a run; None for one with the policy's tokenizer."""


def oracle_readers(settings: RunSettings, *, tokenizer: Any, model_args: Any, data_args: Any) -> OracleReaders:
    """Return ``oracle_reader`` of every oracle of a run, checkpoints included.

    Raises:
        SepoError: see ``oracle_reader``; or checkpoints are missing.
    """
    host = {"tokenizer": tokenizer, "model_args": model_args, "data_args": data_args}
    return [oracle_reader(settings.with_oracle(member), **host) for member in oracle_members(settings.oracles)]


def oracle_scorer(
    settings: RunSettings,
    *,
    readers: OracleReaders,
    place: PlaceResponse | None,
    written: TemplateTokens,
    tokenizer: Any,
    model_args: Any,
    data_args: Any,
    training_args: Any,
) -> StoredScores:
    """Return the scorer of a run's oracles.

    Args:
        settings: the run's settings, with oracles.
        readers: from ``oracle_readers``.
        place: needed with a reader: locates the policy's tokens in a response's text.
        written: the tokens that the host's chat template writes into responses, for step means.
        tokenizer: the policy's tokenizer.
        model_args: the host's model arguments.
        data_args: the host's data arguments.
        training_args: the host's training arguments (device, ranks).

    Raises:
        SepoError: If a model is missing, or an oracle equals its base.
    """
    oracles = settings.oracles
    assert oracles is not None
    models: dict[str, Any] = {"tokenizer": tokenizer, "model_args": model_args, "training_args": training_args}
    models["centered"] = oracles.scores == "centered"
    members: list[OracleScores] = []
    for oracle, reader in zip(oracle_members(oracles), readers, strict=True):
        own = settings.with_oracle(oracle)
        if reader is None:
            members.append(DatasetScorer(own, data_args=data_args, **models))
        else:
            assert place is not None
            members.append(ProjectedScorer(own, reader=reader, place=place, **models))
    if len(members) == 1 and oracles.scores in ("ratio", "centered"):
        return members[0]
    return CombinedScores(
        settings,
        members,
        written=written,
        tokenizer=tokenizer,
        model_args=model_args,
        data_args=data_args,
        training_args=training_args,
    )


class CombinedScores(StoredScores):
    """Scores that are made of those of oracles, as columns ``chosen_scores`` and ``rejected_scores``.

    They are those of the policy's tokens, whatever tokenizers the oracles have.

    Args:
        settings: the run's settings, with oracles.
        members: the scorers of the oracles.
        written: the tokens that the host's chat template writes into responses, for step means.
        tokenizer: the policy's tokenizer.
        model_args: the host's model arguments.
        data_args: the host's data arguments.
        training_args: the host's training arguments (device, ranks).
    """

    columns = SCORE_COLUMNS
    what = "token scores"

    def __init__(
        self,
        settings: RunSettings,
        members: Sequence[OracleScores],
        *,
        written: TemplateTokens = NO_TEMPLATE,
        tokenizer: Any,
        model_args: Any,
        data_args: Any,
        training_args: Any,
    ) -> None:
        assert settings.oracles is not None
        self.scores, self.members, self.written = settings.oracles.scores, members, written
        made: dict[str, Any] = {"scores": self.scores}
        if self.scores == "step_mean":
            made["written"] = [list(map(list, written.leading)), list(written.trailing)]
        if self.scores == "first_error":
            made |= {"share": FIRST_ERROR_SHARE, "decay": FIRST_ERROR_DECAY}
        identity = {
            "scorer": "oracle",
            **made,
            "members": [member.identity for member in members],
            **host_identity(tokenizer=tokenizer, model_args=model_args, data_args=data_args),
        }
        super().__init__(settings, identity=identity, row_texts=PolicyTokens(tokenizer), training_args=training_args)
        self.texts = TokenTexts(tokenizer) if self.scores == "step_mean" else None
        self._of_members: list[Dataset] = []

    def _digest(self, dataset: Dataset) -> str:
        read = [member._digest(dataset) for member in self.members if isinstance(member, ProjectedScorer)][:1]
        own = super()._digest(dataset)
        return hashlib.sha256("\n".join([own, *read]).encode("ascii")).hexdigest() if read else own

    def _fill(self, store: Any, dataset: Dataset, *, name: str) -> None:
        """Score the rows by one oracle after the other, then combine the scores."""
        self._of_members = []
        for member in self.members:
            member.names = {**self.names, "models": oracle_name(member.oracle)}
            member.report = self.report
            self._of_members.append(member.attach(dataset, name=name).select_columns(list(SCORE_COLUMNS)))
            if len(self.members) > 1:
                member.free()
        super()._fill(store, dataset, name=name)
        self._of_members = []

    def free(self) -> None:
        """Drop the oracles and release their memory."""
        for member in self.members:
            member.free()

    def _score(
        self, dataset: Dataset, start: int, stop: int, on_batch: Callable[[int], None]
    ) -> dict[str, list[np.ndarray]]:
        scored = [rows[start:stop] for rows in self._of_members]
        rows = dataset[start:stop]
        steps = None if self.texts is None else step_columns(rows, self.texts, self.written)
        made: dict[str, list[np.ndarray]] = {}
        for column, numbers in zip(SCORE_COLUMNS, STEP_COLUMNS, strict=True):
            made[column] = []
            for index in range(stop - start):
                scores = mean_scores([np.asarray(member[column][index], dtype=np.float32) for member in scored])
                if steps is not None:
                    scores = step_mean_scores(scores, steps[numbers][index])
                elif self.scores == "first_error" and column == SCORE_COLUMNS[1]:
                    scores = first_error_scores(scores)
                made[column].append(scores.float().numpy())
        on_batch(2 * (stop - start))
        return made

    def _refuse_zeros(self, name: str) -> None:
        raise SepoError(
            f"the scores that are made of {len(self.members)} oracles are all zero for {name}; check that the oracles "
            "are not each other's base."
        )
