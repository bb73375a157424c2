"""Token scores from an oracle and its base: the identity of a store, and the computation."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from datasets import Dataset

from sepo.errors import SepoError
from sepo.forward.sequences import OracleScorer, ScoredSequence
from sepo.recipe.model_specs import OracleSpec
from sepo.recipe.settings import RunSettings
from sepo.scoring.hub import HubAccess, hub_access
from sepo.scoring.model_files import check_tokenizers
from sepo.scoring.models import load_scoring_models
from sepo.scoring.row_texts import PolicyTokens, RowTexts
from sepo.scoring.stored_columns import StoredScores, host_identity, row_sequences, spec_identity
from sepo.training.selection_columns import SCORE_COLUMNS


def scoring_identity(oracle: OracleSpec, *, tokenizer: Any, model_args: Any, data_args: Any) -> dict[str, Any]:
    """Return all that the scores depend on except the rows; together with the rows' digest it identifies a store.

    Raises:
        SepoError: If a model is missing or has another tokenizer, or the oracle equals its base.
    """
    access = hub_access(model_args)
    for key, spec in (("oracle_model", oracle.oracle), ("oracle_base_model", oracle.base)):
        check_tokenizers(tokenizer, spec, key=key, access=access)
    return {
        "scorer": "oracle",
        **oracle_identity(oracle, access=access),
        **host_identity(tokenizer=tokenizer, model_args=model_args, data_args=data_args),
    }


def oracle_identity(oracle: OracleSpec, *, access: HubAccess) -> dict[str, Any]:
    """Return the identity of the oracle and its base by content.

    Raises:
        SepoError: If a model is missing, or the oracle equals its base.
    """
    identity = {
        "oracle": spec_identity(oracle.oracle, key="oracle_model", access=access),
        "base": spec_identity(oracle.base, key="oracle_base_model", access=access),
    }
    if identity["oracle"] == identity["base"]:
        raise SepoError(
            f"the oracle '{oracle.oracle.model}' and its base '{oracle.base.model}' hold the same weights, so every "
            "token would score zero. The oracle must be a model that DPO trained from the base: check that the "
            "oracle's weights were saved after training and that both keys name the intended paths."
        )
    return identity


class OracleScores(StoredScores):
    """Scores from an oracle and its base, as columns ``chosen_scores`` and ``rejected_scores``.

    Args:
        settings: the run's settings, with an oracle.
        identity: all that the scores depend on except the rows.
        row_texts: returns the texts of rows in the oracle's tokens.
        model_args: the host's model arguments.
        training_args: the host's training arguments (device, ranks).
    """

    columns = SCORE_COLUMNS
    what = "token scores"

    def __init__(
        self,
        settings: RunSettings,
        *,
        identity: dict[str, Any],
        row_texts: RowTexts,
        model_args: Any,
        training_args: Any,
    ) -> None:
        assert settings.oracle is not None
        super().__init__(settings, identity=identity, row_texts=row_texts, training_args=training_args)
        self.oracle, self.model_args = settings.oracle, model_args

    def _score(
        self, dataset: Dataset, start: int, stop: int, on_batch: Callable[[int], None]
    ) -> dict[str, list[np.ndarray]]:
        sequences = self._sequences(dataset[start:stop])
        scores = [scores.numpy() for scores in self._loaded().score(sequences, pairs=True, on_batch=on_batch)]
        count = stop - start
        return {"chosen_scores": scores[:count], "rejected_scores": scores[count:]}

    @abstractmethod
    def _sequences(self, rows: Mapping[str, list[Any]]) -> list[ScoredSequence]:
        """Return the rows as the oracle reads them: all chosen ones, then all rejected ones."""

    def _loaded(self) -> OracleScorer:
        if self._scorer is None:
            oracle, base = load_scoring_models(
                self.oracle, model_args=self.model_args, device=self.training_args.device
            )
            self._scorer = OracleScorer(
                oracle=oracle,
                base=base,
                batch_tokens=self.settings.score_batch_tokens,
                chunk_tokens=self.settings.head_chunk_tokens,
            )
        return self._scorer

    def _refuse_zeros(self, name: str) -> None:
        raise SepoError(
            f"the oracle '{self.oracle.oracle.model}' gives every token the same probability as its base "
            f"'{self.oracle.base.model}' (all scores are zero). Check that the oracle was trained, and from this base."
        )


class DatasetScorer(OracleScores):
    """Scores from an oracle with the policy's tokenizer, which reads the policy's tokens.

    Args:
        settings: the run's settings, with an oracle.
        tokenizer: the policy's tokenizer.
        model_args: the host's model arguments.
        data_args: the host's data arguments.
        training_args: the host's training arguments (device, ranks).
    """

    def __init__(
        self, settings: RunSettings, *, tokenizer: Any, model_args: Any, data_args: Any, training_args: Any
    ) -> None:
        assert settings.oracle is not None
        identity = scoring_identity(settings.oracle, tokenizer=tokenizer, model_args=model_args, data_args=data_args)
        super().__init__(
            settings,
            identity=identity,
            row_texts=PolicyTokens(tokenizer),
            model_args=model_args,
            training_args=training_args,
        )

    def _sequences(self, rows: Mapping[str, list[Any]]) -> list[ScoredSequence]:
        return row_sequences(rows)
