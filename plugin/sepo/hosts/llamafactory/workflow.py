"""Workflow of a sepo stage in LLaMA-Factory: data, scores, policy, training, evaluation."""

from __future__ import annotations

import contextlib
import json
import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import transformers
from datasets import Dataset
from llamafactory.data import PairwiseDataCollatorWithPadding, get_dataset, get_template_and_fix_tokenizer
from llamafactory.extras.constants import IGNORE_INDEX
from llamafactory.extras.misc import calculate_tps
from llamafactory.extras.ploting import plot_loss
from llamafactory.model import load_model, load_tokenizer
from llamafactory.train.trainer_utils import create_modelcard_and_push, create_ref_model
from transformers.integrations import is_deepspeed_zero3_enabled
from transformers.modeling_utils import is_fsdp_enabled

import sepo.hosts.llamafactory.scoring_models  # noqa: F401
from sepo.credit.in_run import MarkedRows, marked_rows, report_scores
from sepo.errors import SepoError
from sepo.hosts.llamafactory.board.progress import abortable, report_scoring
from sepo.hosts.llamafactory.conversations import conversations_kept
from sepo.hosts.llamafactory.credit import TemplateReader
from sepo.hosts.llamafactory.pair_encoding import pairs_encoded, without_cuts
from sepo.hosts.llamafactory.recipe import recipe_of
from sepo.hosts.llamafactory.response_tokens import PolicyResponses, written_by_template
from sepo.hosts.llamafactory.rows import counted_rows
from sepo.hosts.llamafactory.trainer import LlamaFactoryTrainer
from sepo.hosts.llamafactory.user_scores import carried_scores
from sepo.recipe.settings import RunSettings
from sepo.runs.files import method_collator, write_settings
from sepo.runs.first_screen import FirstScreen, log_first_screen
from sepo.runs.log_writer import RunLog, note_preparation, note_rows
from sepo.runs.runaway import RunawayWarning
from sepo.runs.sampled_rows import DatasetRows
from sepo.runs.token_samples import TokenRecord
from sepo.scoring.combined_oracles import oracle_readers
from sepo.scoring.hub import cached_if_unreachable
from sepo.scoring.live_columns import selection_columns
from sepo.scoring.prepare import scorers_of, with_scores
from sepo.scoring.store_names import store_names
from sepo.scoring.user_scores import warn_of_equal_scores
from sepo.text.conversations import CONVERSATION, EXPORTED, QUOTED, READ
from sepo.text.template_tokens import NO_TEMPLATE, TemplateTokens
from sepo.text.token_texts import template_texts
from sepo.timing import Timing
from sepo.training.row_losses import RowLosses
from sepo.training.starting_policy import StartingPolicy
from sepo.training.trainable_rows import each_dataset, joined_column, keep_trainable, with_lengths

logger = logging.getLogger(__name__)


def run_stage(
    model_args: Any, data_args: Any, training_args: Any, finetuning_args: Any, callbacks: Any, *, settings: RunSettings
) -> None:
    """Run a stage; the first five arguments are the host's parsed objects, as its own workflows take them."""
    timing, resolved = Timing(), settings.as_dict()
    logger.info("stage %s: %s", settings.stage, json.dumps(resolved))
    log_first_screen(settings)
    if training_args.do_train and training_args.process_index == 0:
        method = {name: resolved[name] for name in ("stage", "objective", "token_scorer")}
        note_preparation(Path(training_args.output_dir), **method)
    with abortable():
        data = prepared_data(settings, model_args=model_args, data_args=data_args, training_args=training_args)
    tokenizer, template, datasets, stores = data.tokenizer, data.template, data.datasets, data.stores
    if training_args.do_train and training_args.process_index == 0:
        note_rows(Path(training_args.output_dir), data.losses)
    if stores:
        # Loading an adapter and scoring advance the random state: a run that scores and one that finds the store
        # must initialize the policy's adapter with the same weights.
        transformers.set_seed(training_args.seed)
    datasets = selection_columns(
        datasets, settings.method, tokenizer=tokenizer, seed=training_args.seed, template=data.written
    )
    if training_args.process_index == 0:
        folder = Path(training_args.output_dir) if training_args.do_train else None
        report_scores(datasets, settings.method, marked=data.marked, scored=data.scored, folder=folder)
    timing.lap("rows and scores")
    with cached_if_unreachable():
        model = load_model(tokenizer, model_args, finetuning_args, training_args.do_train)
        ref_model, starting_policy = _reference(model, settings, model_args, training_args, finetuning_args)
    timing.lap("policy")
    trainer = build_trainer(
        model,
        settings=settings,
        ref_model=ref_model,
        starting_policy=starting_policy,
        template=template,
        tokenizer_module=data.tokenizer_module,
        training_args=training_args,
        finetuning_args=finetuning_args,
        datasets=datasets,
        callbacks=callbacks,
    )
    if training_args.do_train:
        if trainer.is_world_process_zero():
            write_settings(
                Path(training_args.output_dir),
                settings,
                stores,
                recipe=recipe_of(finetuning_args),
                template=template_texts(data.written, tokenizer),
            )
        trainer.add_callback(RunLog())
        trainer.add_callback(FirstScreen(settings))
        trainer.add_callback(RunawayWarning(settings, chosen_nll_weight=trainer.chosen_nll_weight))
        _record_tokens(trainer, settings, tokenizer=tokenizer, dataset=datasets["train_dataset"])
        timing.lap("trainer")
        logger.info("before training: %s.", timing.laps)
        _train(trainer, datasets, training_args, finetuning_args)
    if training_args.do_eval:
        metrics = trainer.evaluate(metric_key_prefix="eval")
        trainer.log_metrics("eval", metrics)
        trainer.save_metrics("eval", metrics)
    create_modelcard_and_push(trainer, model_args, data_args, training_args, finetuning_args)


@dataclass(frozen=True)
class PreparedData:
    """Rows of a run, prepared before the policy is loaded.

    Attributes:
        tokenizer_module: tokenizer and processor, from the host's ``load_tokenizer``.
        template: the host's template.
        datasets: tokenized data sets by the host's roles, with the scored columns.
        stores: directories of the score stores, by their content, then by data set.
        losses: rows that were left out, cut or changed.
        written: tokens that the template writes into responses.
        marked: rows of ``credit_data``, or None.
        scored: their data set with the scores of the selection, or None.
    """

    tokenizer_module: dict[str, Any]
    template: Any
    datasets: dict[str, Any]
    stores: dict[str, dict[str, str]]
    losses: RowLosses = field(default_factory=RowLosses)
    written: TemplateTokens = NO_TEMPLATE
    marked: MarkedRows | None = None
    scored: Dataset | None = None

    @property
    def tokenizer(self) -> Any:
        """Tokenizer of the policy."""
        return self.tokenizer_module["tokenizer"]


def prepared_data(
    settings: RunSettings,
    *,
    model_args: Any,
    data_args: Any,
    training_args: Any,
    find_only: bool = False,
    keep_text: bool = False,
    text_reader: tuple[str, str] = EXPORTED,
    more_columns: contextlib.AbstractContextManager[None] | None = None,
) -> PreparedData:
    """Tokenize a run's training and evaluation rows as the host does, and score them or load their stored scores.

    The first process logs the table of rows that are left out, cut or changed.

    Args:
        settings: the run's settings.
        model_args: the host's model arguments.
        data_args: the host's data arguments.
        training_args: the host's training arguments (device, ranks).
        find_only: whether to score nothing and raise if scores are missing.
        keep_text: whether to keep the conversation of each row in the column ``CONVERSATION``.
        text_reader: the consumer of that column, for the error message about rows with images.
        more_columns: context in which the host loads and tokenizes the rows, to carry further columns.

    Raises:
        SepoError: the data or the scoring models are invalid, or a store cannot be written.
    """
    losses = RowLosses()
    with cached_if_unreachable():
        tokenizer_module = load_tokenizer(model_args)
    tokenizer = tokenizer_module["tokenizer"]
    template = get_template_and_fix_tokenizer(tokenizer, data_args)
    carried = carried_scores(template=template) if settings.method.scorer == "file" else contextlib.nullcontext()
    readers = oracle_readers(settings, tokenizer=tokenizer, model_args=model_args, data_args=data_args)
    text_for = QUOTED if settings.prompts_for_rewards else READ if any(readers) else text_reader
    text_kept = conversations_kept(settings.prompts_for_rewards or any(readers) or keep_text, text_for)
    more = more_columns or contextlib.nullcontext()
    with pairs_encoded(), carried, more, counted_rows(losses, template=template), text_kept:
        datasets = get_dataset(template, model_args, data_args, training_args, stage="rm", **tokenizer_module)
    written = written_by_template(template, tokenizer)
    excluded = NO_TEMPLATE if settings.method.selector is None else written
    common: dict[str, Any] = {"tokenizer": tokenizer, "losses": losses}

    def kept(rows: Any, name: str) -> Any:
        rows = keep_trainable(rows, name=name, template=excluded, **common)
        if settings.method.scorer == "file":
            warn_of_equal_scores(rows, settings.method, name=name)
        return without_cuts(rows, name=name, cutoff_len=data_args.cutoff_len, **common)

    datasets = each_dataset(datasets, kept)
    if training_args.process_index == 0:
        losses.log()
    stores: dict[str, dict[str, str]] = {}
    marked = scored = None
    if settings.scores_before_training:
        host = {"model_args": model_args, "data_args": data_args, "training_args": training_args}
        place = None
        if any(readers):
            place = PolicyResponses(template, tokenizer, processor=None, data_args=data_args).place
        scorers = scorers_of(
            settings, tokenizer=tokenizer, template=template, readers=readers, place=place, written=written, **host
        )
        for what, scorer in scorers.items():
            scorer.names = store_names(settings, what, data_args=data_args, template=template_texts(written, tokenizer))
            scorer.find_only = find_only
            scorer.report = report_scoring
        if settings.credit_data is not None and not find_only:
            rows = TemplateReader(template, tokenizer, data_args=data_args, positions=None)
            marked = marked_rows(settings.credit_data, lambda pairs: [rows.read(pair) for pair in pairs])
        tokenized = datasets
        datasets, stores, scored = with_scores(datasets, scorers, marked=None if marked is None else marked.dataset)
        if keep_text:
            datasets = joined_column(datasets, tokenized, CONVERSATION)
    return PreparedData(tokenizer_module, template, datasets, stores, losses, written, marked, scored)


def pair_collator(model: Any, *, template: Any, tokenizer_module: dict[str, Any]) -> Any:
    """Return the host's pairwise collator, configured as for its own DPO."""
    return PairwiseDataCollatorWithPadding(
        template=template,
        model=model,
        pad_to_multiple_of=8,
        label_pad_token_id=IGNORE_INDEX,
        **tokenizer_module,
    )


def build_trainer(
    model: Any,
    *,
    settings: RunSettings,
    ref_model: Any,
    starting_policy: StartingPolicy | None,
    template: Any,
    tokenizer_module: dict[str, Any],
    training_args: Any,
    finetuning_args: Any,
    datasets: dict[str, Any],
    callbacks: Any = None,
) -> LlamaFactoryTrainer:
    """Build the trainer of a stage and its collator.

    Args:
        model: the policy, loaded by the host.
        settings: the run's settings.
        ref_model: the reference as a separate model, or None.
        starting_policy: the reference as the starting weights of the policy, or None.
        template: the host's template.
        tokenizer_module: tokenizer and processor, from the host's ``load_tokenizer``.
        training_args: the host's training arguments.
        finetuning_args: the host's finetuning arguments.
        datasets: data sets by the host's roles, with the columns that the method reads.
        callbacks: the host's callbacks.

    Returns:
        The trainer; the model is not prepared by the engine yet.
    """
    collator = method_collator(pair_collator(model, template=template, tokenizer_module=tokenizer_module), settings)
    return LlamaFactoryTrainer(
        settings=settings,
        starting_policy=starting_policy,
        model=model,
        ref_model=ref_model,
        args=training_args,
        finetuning_args=finetuning_args,
        data_collator=collator,
        callbacks=callbacks,
        **with_lengths(datasets, training_args),
        **tokenizer_module,
    )


def _reference(
    model: Any, settings: RunSettings, model_args: Any, training_args: Any, finetuning_args: Any
) -> tuple[Any, StartingPolicy | None]:
    """Return the reference as a second model or as the policy's starting weights.

    Both are None if the reference is the policy without its adapter, if its log-probabilities are columns of the rows,
    or if the method has none.
    """
    if not settings.runs_reference:
        return None, None
    live = settings.method.scorer == "policy_ref"
    if finetuning_args.ref_model is None and not training_args.do_train:
        logger.warning("no ref_model is set, so the evaluated model is its own reference: every reward is zero.")
        return model, None
    return load_reference(model, model_args, training_args, finetuning_args, live=live)


def load_reference(
    model: Any, model_args: Any, training_args: Any, finetuning_args: Any, *, live: bool = False
) -> tuple[Any, StartingPolicy | None]:
    """Load the reference of a training run with these arguments.

    Args:
        model: the policy before training.
        model_args: the host's model arguments.
        training_args: the host's training arguments.
        finetuning_args: the host's finetuning arguments.
        live: whether tokens are selected by comparison with this reference.

    Returns:
        A separate model or None, and the policy's starting weights or None; both are None if the reference is the
        policy without its adapter.

    Raises:
        SepoError: the engine shards the adapter that is part of the reference.
    """
    ref_model = create_ref_model(model_args, finetuning_args)
    if ref_model is None and live:
        logger.info(
            "the reference is the starting policy: at step 1 every alignment score is zero, so select_rule floor takes "
            "tokens spread evenly over each response and quantile all of them, until the policy has changed."
        )
    continues = model_args.adapter_name_or_path is not None and not finetuning_args.create_new_adapter
    if ref_model is not None or not continues:
        return ref_model, None
    if is_deepspeed_zero3_enabled() or is_fsdp_enabled():
        adapters = ",".join(model_args.adapter_name_or_path)
        raise SepoError(
            f"the run continues from the adapter {adapters}, which is part of its reference, and this engine shards "
            f"it. Set ref_model: {model_args.model_name_or_path} and ref_model_adapters: {adapters}."
        )
    logger.info("the reference is the starting policy, with a frozen copy of its adapter.")
    return None, StartingPolicy(model)


def _record_tokens(trainer: LlamaFactoryTrainer, settings: RunSettings, *, tokenizer: Any, dataset: Any) -> None:
    """Make the first process record some of the pairs that it trains on, with their selected tokens."""
    if trainer.is_world_process_zero() and not trainer.shards_rows():
        trainer.record = TokenRecord(method=settings.method, tokenizer=tokenizer, rows=DatasetRows(dataset))
        trainer.add_callback(trainer.record)


def _train(trainer: Any, datasets: Any, training_args: Any, finetuning_args: Any) -> None:
    result = trainer.train(resume_from_checkpoint=training_args.resume_from_checkpoint)
    trainer.save_model()
    if finetuning_args.include_effective_tokens_per_second:
        result.metrics["effective_tokens_per_sec"] = calculate_tps(
            datasets["train_dataset"], result.metrics, stage="rm"
        )
    trainer.log_metrics("train", result.metrics)
    trainer.save_metrics("train", result.metrics)
    trainer.save_state()
    if trainer.is_world_process_zero() and finetuning_args.plot_loss:
        evaluated = datasets.get("eval_dataset")
        losses = [f"eval_{name}_loss" for name in evaluated] if isinstance(evaluated, dict) else ["eval_loss"]
        plot_loss(training_args.output_dir, keys=["loss", "rewards/accuracies", "select/chosen_ratio", *losses])
