"""Scores of a stored scorer that another package registers (``sepo.scorers``), kept in score stores."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from datasets import Dataset

from sepo.errors import SepoError
from sepo.objectives import SCORERS, RowTokens
from sepo.plugins import find
from sepo.recipe.settings import RunSettings
from sepo.scoring.custom_results import scores_of_rows
from sepo.scoring.row_texts import PolicyTokens
from sepo.scoring.stored_columns import StoredScores, host_identity
from sepo.selection import SIDES
from sepo.selection.scorer_inputs import BatchScorer
from sepo.text.token_texts import TokenTexts
from sepo.training.selection_columns import SCORE_COLUMNS
from sepo.training.trainable_rows import response_start

logger = logging.getLogger(__name__)


class RegisteredScores(StoredScores):
    """Scores of a registered scorer, as columns ``chosen_scores`` and ``rejected_scores``.

    Args:
        settings: the run's settings; its token scorer has ``from_batch``.
        tokenizer: the policy's tokenizer.
        model_args: the host's model arguments.
        data_args: the host's data arguments.
        training_args: the host's training arguments (device, ranks).

    Raises:
        SepoError: If the scorer's settings are not plain JSON values.
    """

    columns = SCORE_COLUMNS
    what = "token scores"

    def __init__(
        self, settings: RunSettings, *, tokenizer: Any, model_args: Any, data_args: Any, training_args: Any
    ) -> None:
        scorer = settings.method.token_scorer
        owner = find("token_scorer", scorer.name, built_in=SCORERS)
        assert scorer.from_batch is not None
        self.name, self.stored = scorer.name, scorer.from_batch
        identity = {
            "scorer": scorer.name,
            "package": None if owner is None else owner.package,
            "settings": dict(self.stored.settings),
            **host_identity(tokenizer=tokenizer, model_args=model_args, data_args=data_args),
        }
        super().__init__(settings, identity=identity, row_texts=PolicyTokens(tokenizer), training_args=training_args)
        self.texts = TokenTexts(tokenizer)

    def _score(
        self, dataset: Dataset, start: int, stop: int, on_batch: Callable[[int], None]
    ) -> dict[str, list[np.ndarray]]:
        rows = dataset[start:stop]
        responses = [
            self._tokens(ids, response_start(labels), chosen=side == "chosen")
            for side in SIDES
            for ids, labels in zip(rows[f"{side}_input_ids"], rows[f"{side}_labels"], strict=True)
        ]
        scores = scores_of_rows(
            self.name, self._loaded(), responses, batch_tokens=self.settings.score_batch_tokens, on_batch=on_batch
        )
        count = stop - start
        return dict(zip(SCORE_COLUMNS, (scores[:count], scores[count:]), strict=True))

    def _tokens(self, ids: list[int], start: int, *, chosen: bool) -> RowTokens:
        return RowTokens(tuple(ids[:start]), tuple(ids[start:]), tuple(self.texts.pieces(ids[start:])), chosen)

    def _loaded(self) -> BatchScorer:
        if self._scorer is None:
            self._scorer = self.stored.load(torch.device(self.training_args.device))
        scorer: BatchScorer = self._scorer
        return scorer

    def _refuse_zeros(self, name: str) -> None:
        what = f"token scorer '{self.name}' gives every token of {name} the score zero"
        if name == "train":
            raise SepoError(f"{what}, so it cannot select tokens; check what its package loads.")
        logger.warning("%s, so the first tokens of its responses are selected.", what)
