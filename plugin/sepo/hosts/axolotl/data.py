"""Preparation of a run's pairs before the policy is loaded: load, tokenize as Axolotl's trainer does, and score."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from datasets import Dataset
from transformers import set_seed

from sepo.credit.in_run import marked_rows, report_scores
from sepo.errors import SepoError
from sepo.hosts.axolotl.conversations import ChatTemplate
from sepo.hosts.axolotl.hub import check_models, models_of
from sepo.hosts.axolotl.logs import log_as_the_host
from sepo.hosts.axolotl.marked import read_marked
from sepo.hosts.axolotl.models import host_arguments, on_several_cpus
from sepo.hosts.axolotl.pair_tokens import TOKENS, host_tokens, in_columns
from sepo.hosts.axolotl.response_tokens import PolicyResponses, UserScores
from sepo.hosts.axolotl.rows import kept_rows, rows_read, written_by_template
from sepo.recipe.settings import RunSettings
from sepo.runs.first_screen import log_first_screen
from sepo.runs.log_writer import note_preparation, note_rows
from sepo.scoring.combined_oracles import oracle_readers
from sepo.scoring.hub import cached_if_unreachable
from sepo.scoring.live_columns import selection_columns
from sepo.scoring.prepare import scorers_of, with_scores
from sepo.scoring.store_names import store_names
from sepo.scoring.user_scores import score_columns, warn_of_equal_scores
from sepo.text.conversations import CONVERSATION, QUOTED, READ
from sepo.text.template_tokens import NO_TEMPLATE, TemplateTokens
from sepo.text.token_texts import template_texts
from sepo.training.row_losses import RowLosses
from sepo.training.trainable_rows import each_dataset, keep_trainable

logger = logging.getLogger(__name__)


class LoadedPairs(NamedTuple):
    """Rows of a run.

    Args:
        meta: the host's ``TrainDatasetMeta``, with the columns of sepo's stages in its rows.
        stores: directories of the score stores, by their content, then by data set.
        template: texts of the tokens that the chat template writes into responses, for the run's records.
    """

    meta: Any
    stores: dict[str, dict[str, str]]
    template: Mapping[str, Any] | None = None


def load_pairs(cfg: Any, settings: RunSettings, *, preprocess: bool) -> LoadedPairs:
    """Load, tokenize and score a run's training and evaluation rows.

    Args:
        cfg: the validated config; its ``device_map`` is cleared for several processes on CPUs, for which the host's
            value is wrong.
        settings: the run's settings.
        preprocess: only load the rows as the host does.

    Raises:
        SepoError: If the data or the scoring models are invalid, or a store cannot be written.
    """
    from axolotl.common.datasets import TrainDatasetMeta
    from axolotl.loaders import load_tokenizer

    from sepo.hosts.axolotl.reference import install_reference

    host = host_arguments(cfg)
    log_as_the_host(first_process=host.training_args.process_index == 0)
    log_first_screen(settings)
    check_models(cfg, models_of(settings))
    with cached_if_unreachable():
        tokenizer = load_tokenizer(cfg)
    readers = oracle_readers(settings, tokenizer=tokenizer, model_args=host.model_args, data_args=host.data_args)
    quoting = QUOTED if settings.prompts_for_rewards else READ if any(readers) else None
    with cached_if_unreachable(), rows_read(cfg, quoting, keep_spans=settings.method.scorer == "file"):
        meta = host_rows(cfg)
    if preprocess:
        return LoadedPairs(meta, {})
    resolved = settings.as_dict()
    logger.info("stage %s: %s", settings.stage, json.dumps(resolved))
    if host.training_args.process_index == 0:
        described = {name: resolved[name] for name in ("stage", "objective", "token_scorer")}
        note_preparation(Path(host.training_args.output_dir), **described)
    if on_several_cpus():
        cfg.device_map = None
    install_reference(settings)
    loaded = {"train_dataset": meta.train_dataset, "eval_dataset": meta.eval_dataset}
    datasets = {role: rows for role, rows in loaded.items() if rows is not None}
    losses = RowLosses()
    written = NO_TEMPLATE if settings.method.selector is None else written_by_template(cfg, tokenizer)
    texts = template_texts(written, tokenizer)
    datasets = each_dataset(
        datasets,
        lambda rows, name: tokenized(
            rows, cfg, settings, tokenizer=tokenizer, name=name, losses=losses, template=written
        ),
    )
    if host.training_args.process_index == 0:
        losses.log()
        note_rows(Path(host.training_args.output_dir), losses)
    place = PolicyResponses(tokenizer).place if any(readers) else None
    template = ChatTemplate(cfg, tokenizer)
    scorers = scorers_of(
        settings,
        tokenizer=tokenizer,
        template=template,
        readers=readers,
        place=place,
        written=written,
        **host.as_dict(),
    )
    for what, scorer in scorers.items():
        scorer.names = store_names(settings, what, data_args=host.data_args, template=texts)
    marked = None
    if settings.credit_data is not None:
        marked = marked_rows(settings.credit_data, partial(read_marked, cfg=cfg, tokenizer=tokenizer))
    datasets, stores, scored = with_scores(datasets, scorers, marked=None if marked is None else marked.dataset)
    # Scoring advances the random state; with the seed set again the adapter's initial weights do not depend on it.
    set_seed(cfg.seed or 42)
    datasets = selection_columns(datasets, settings.method, tokenizer=tokenizer, seed=cfg.seed or 42, template=written)
    if host.training_args.process_index == 0:
        folder = Path(host.training_args.output_dir)
        report_scores(datasets, settings.method, marked=marked, scored=scored, folder=folder)
    steps = math.ceil(len(datasets["train_dataset"]) * cfg.num_epochs / cfg.batch_size)
    return LoadedPairs(TrainDatasetMeta(datasets["train_dataset"], datasets.get("eval_dataset"), steps), stores, texts)


def host_rows(cfg: Any) -> Any:
    """Return the data sets of a run as Axolotl loads them, a ``TrainDatasetMeta``.

    Raises:
        SepoError: If no row is left.
    """
    from axolotl.common.datasets import load_preference_datasets

    try:
        return load_preference_datasets(cfg=cfg)
    except ZeroDivisionError as error:  # of the `datasets` of Axolotl 0.19, which divides by the number of rows to save
        raise _none_left("train", cfg) from error


def _none_left(name: str, cfg: Any) -> SepoError:
    return SepoError(
        f"{name}: no row is left: Axolotl has dropped all whose prompt and response are longer than sequence_len "
        f"({cfg.sequence_len}); raise it, or set excess_length_strategy: truncate."
    )


def tokenized(
    dataset: Dataset,
    cfg: Any,
    settings: RunSettings,
    *,
    tokenizer: Any,
    name: str,
    losses: RowLosses,
    template: TemplateTokens = NO_TEMPLATE,
) -> Dataset:
    """Tokenize text pairs with the method of the host's trainer, into the columns that all hosts share.

    Args:
        dataset: rows with ``prompt``, ``chosen`` and ``rejected``.
        cfg: the config.
        settings: the run's settings.
        tokenizer: the policy's tokenizer.
        name: name of the data set in the log.
        losses: gets the rows that are left out.
        template: tokens that may not be selected.

    Returns:
        ``*_input_ids`` and ``*_labels``, each truncated to ``sequence_len``; the conversation and the user's scores if
        the method reads them.

    Raises:
        SepoError: If the rows have images, or scores that do not fit, or none is left.
    """
    if {"image", "images"} & set(dataset.column_names) and not isinstance(dataset[0]["chosen"], str):
        raise SepoError(
            f"the rows of {name} have images, and in Axolotl sepo's stages train on text only; use LLaMA-Factory, or "
            "remove the column."
        )
    if not len(dataset):
        raise _none_left(name, cfg)
    dataset = kept_rows(dataset, losses, name=name)
    made = host_tokens(dataset, cfg, tokenizer=tokenizer, name=name)
    given = score_columns(made, name=name) if settings.method.scorer == "file" else []
    kept = (*given, *((CONVERSATION,) if CONVERSATION in made.column_names else ()))
    made = made.select_columns([*TOKENS, *kept])
    scores = UserScores(given, tokenizer=tokenizer, name=name) if given else None
    made = in_columns(made, cfg, tokenizer=tokenizer, given=given, scores=scores)
    made = keep_trainable(made, name=name, tokenizer=tokenizer, losses=losses, template=template)
    if given:
        warn_of_equal_scores(made, settings.method, name=name)
    return made
