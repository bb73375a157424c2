"""Token scores from an oracle and its base: the identity of a store, and the computation."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from datasets import Dataset

from sepo.errors import SepoError
from sepo.forward.centered import CenteredOracleScorer
from sepo.forward.sequences import OracleScorer, ScoredSequence
from sepo.recipe.model_specs import OracleSpec
from sepo.recipe.settings import RunSettings
from sepo.scoring.hub import HubAccess, hub_access
from sepo.scoring.model_files import check_tokenizers, vocabulary_size
from sepo.scoring.models import load_scoring_models
from sepo.scoring.row_texts import PolicyTokens, RowTexts
from sepo.scoring.stored_columns import StoredScores, host_identity, row_sequences, spec_identity
from sepo.training.selection_columns import SCORE_COLUMNS


def scoring_identity(
    oracle: OracleSpec, *, tokenizer: Any, model_args: Any, data_args: Any, centered: bool = False
) -> dict[str, Any]:
    """Return all that the scores depend on except the rows; together with the rows' digest it identifies a store.

    Args:
        oracle: the oracle and its base.
        tokenizer: the policy's tokenizer.
        model_args: the host's model arguments.
        data_args: the host's data arguments.
        centered: whether the scores are centered by what the base expects.

    Raises:
        SepoError: If a model is missing or has another tokenizer, or the oracle equals its base.
    """
    access = hub_access(model_args)
    for key, spec in (("oracle_model", oracle.oracle), ("oracle_base_model", oracle.base)):
        check_tokenizers(tokenizer, spec, key=key, access=access)
    return {
        "scorer": "oracle",
        **oracle_identity(oracle, access=access, centered=centered),
        **host_identity(tokenizer=tokenizer, model_args=model_args, data_args=data_args),
    }


def oracle_identity(oracle: OracleSpec, *, access: HubAccess, centered: bool = False) -> dict[str, Any]:
    """Return the identity of the oracle and its base by content, and of scores that are not their log-ratios.

    Raises:
        SepoError: If a model is missing, the oracle equals its base, or centered scores would compare distributions
            over different vocabularies.
    """
    if centered:
        _check_vocabularies(oracle, access=access)
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
    return {**identity, "scores": "centered"} if centered else identity


def _check_vocabularies(oracle: OracleSpec, *, access: HubAccess) -> None:
    sizes = [
        vocabulary_size(spec, key=key, access=access)
        for key, spec in (("oracle_model", oracle.oracle), ("oracle_base_model", oracle.base))
    ]
    if None not in sizes and len(set(sizes)) > 1:
        raise SepoError(
            "oracle_scores is centered, which compares whole distributions, but the oracle "
            f"'{oracle.oracle.model}' has {sizes[0]:,} logits per token and its base '{oracle.base.model}' "
            f"{sizes[1]:,}; use models with equal vocabularies, or remove oracle_scores."
        )


class OracleScores(StoredScores):
    """Scores from an oracle and its base, as columns ``chosen_scores`` and ``rejected_scores``.

    Args:
        settings: the run's settings, with an oracle.
        identity: all that the scores depend on except the rows.
        row_texts: returns the texts of rows in the oracle's tokens.
        model_args: the host's model arguments.
        training_args: the host's training arguments (device, ranks).
        centered: whether the scores are centered by what the base expects; part of the identity.
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
        centered: bool = False,
    ) -> None:
        assert settings.oracle is not None
        super().__init__(settings, identity=identity, row_texts=row_texts, training_args=training_args)
        self.oracle, self.model_args, self.centered = settings.oracle, model_args, centered

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
            self._scorer = (CenteredOracleScorer if self.centered else OracleScorer)(
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
        centered: whether the scores are centered by what the base expects.
    """

    def __init__(
        self,
        settings: RunSettings,
        *,
        tokenizer: Any,
        model_args: Any,
        data_args: Any,
        training_args: Any,
        centered: bool = False,
    ) -> None:
        assert settings.oracle is not None
        identity = scoring_identity(
            settings.oracle, tokenizer=tokenizer, model_args=model_args, data_args=data_args, centered=centered
        )
        super().__init__(
            settings,
            identity=identity,
            row_texts=PolicyTokens(tokenizer),
            model_args=model_args,
            training_args=training_args,
            centered=centered,
        )

    def _sequences(self, rows: Mapping[str, list[Any]]) -> list[ScoredSequence]:
        return row_sequences(rows)
