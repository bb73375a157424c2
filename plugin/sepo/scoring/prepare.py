"""Scoring before training: the scorers that a run needs, and their columns joined to its rows."""

from __future__ import annotations

from typing import Any, NamedTuple

from datasets import Dataset

from sepo.recipe.settings import RunSettings
from sepo.scoring.combined_oracles import OracleReaders, oracle_scorer
from sepo.scoring.contrastive import ContrastiveDatasetScorer
from sepo.scoring.custom import RegisteredScores
from sepo.scoring.projected import PlaceResponse
from sepo.scoring.reference import ReferenceScores
from sepo.scoring.stored_columns import StoredScores
from sepo.text.conversations import without_conversations
from sepo.text.template_tokens import TemplateTokens
from sepo.training.trainable_rows import each_dataset

CREDIT_DATA = "credit_data"
"""Recipe key of the rows with marked errors, and their name in logs and stores."""


def scorers_of(
    settings: RunSettings,
    *,
    tokenizer: Any,
    template: Any,
    readers: OracleReaders,
    place: PlaceResponse | None,
    written: TemplateTokens,
    model_args: Any,
    data_args: Any,
    training_args: Any,
) -> dict[str, StoredScores]:
    """Return the scorers that a run needs before training.

    Args:
        settings: the run's settings.
        tokenizer: the policy's tokenizer.
        template: the host's chat template, for T-REG's prompts.
        readers: from ``oracle_readers``.
        place: needed with a reader: locates the policy's tokens in a response's text.
        written: the tokens that the host's chat template writes into responses.
        model_args: the host's model arguments.
        data_args: the host's data arguments.
        training_args: the host's training arguments (device, ranks).

    Returns:
        Scorers by the name under which the run's settings file lists their stores.
    """
    scorers: dict[str, StoredScores] = {}
    host: dict[str, Any] = {"tokenizer": tokenizer, "model_args": model_args, "data_args": data_args}
    host["training_args"] = training_args
    if settings.oracles is not None:
        scorers["token_scores"] = oracle_scorer(settings, readers=readers, place=place, written=written, **host)
    if settings.prompts_for_rewards:
        scorers["token_reward_scores"] = ContrastiveDatasetScorer(settings, template=template, **host)
    if settings.precomputed_reference is not None:
        scorers["reference_scores"] = ReferenceScores(settings, **host)
    if settings.method.token_scorer.from_batch is not None:
        scorers["registered_scores"] = RegisteredScores(settings, **host)
    return scorers


_OF_SELECTION = ("token_scores", "registered_scores", "token_reward_scores")
"""Names of scorers; the first that a run has gives the scores of its selection, or else of its token rewards."""


class Scored(NamedTuple):
    """Rows of a run with their scores.

    Args:
        datasets: the data sets with the columns of every scorer, without conversations.
        stores: directories of the stores by scorer, then by data set.
        marked: the rows with marked errors and their scores; None without such rows.
    """

    datasets: dict[str, Any]
    stores: dict[str, dict[str, str]]
    marked: Dataset | None


def with_scores(datasets: Any, scorers: dict[str, StoredScores], *, marked: Dataset | None = None) -> Scored:
    """Compute or find the columns of every scorer, with the models of one scorer in memory at a time.

    Args:
        datasets: the host's data sets by role (``train_dataset``, ``eval_dataset``).
        scorers: from ``scorers_of``.
        marked: rows of ``credit_data`` with the columns of tokenized pairs and their conversation, which only the
            scorer of the selection scores; None for none.
    """
    selecting = next((what for what in _OF_SELECTION if what in scorers), None)
    stores = {}
    for what, scorer in scorers.items():
        datasets = each_dataset(datasets, lambda rows, name, scorer=scorer: scorer.attach(rows, name=name))  # type: ignore[misc]
        stores[what] = dict(scorer.stores)
        if marked is not None and what == selecting:
            marked = scorer.attach(marked, name=CREDIT_DATA)
        scorer.free()
    return Scored(each_dataset(datasets, lambda rows, _: without_conversations(rows)), stores, marked)
