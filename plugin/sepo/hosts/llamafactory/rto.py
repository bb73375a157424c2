"""Workflow of stage `rto` in LLaMA-Factory: prompts, policy, oracle, judge, training, evaluation."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import torch
import transformers
from llamafactory.data import get_template_and_fix_tokenizer
from llamafactory.extras.ploting import plot_loss
from llamafactory.model import load_model, load_tokenizer
from llamafactory.train.trainer_utils import create_modelcard_and_push

import sepo.hosts.llamafactory.scoring_models  # noqa: F401
from sepo.errors import SepoError, first_line
from sepo.forward.sequences import OracleScorer
from sepo.hosts.llamafactory.evaluated_rows import chat_format_of
from sepo.hosts.llamafactory.hub import policy_in
from sepo.hosts.llamafactory.recipe import recipe_of
from sepo.hosts.llamafactory.rto_arguments import check_prompts, grpo_config
from sepo.hosts.llamafactory.rto_prompts import prompt_sets
from sepo.hosts.llamafactory.rto_trainer import LlamaFactoryRtoTrainer
from sepo.hosts.llamafactory.workflow import load_reference
from sepo.online.judged import JudgeReward
from sepo.recipe.rto import RtoSettings
from sepo.rewards import ConstantRewardCheck, open_rewards
from sepo.runs.files import write_settings
from sepo.runs.first_screen import FirstScreen, log_first_screen
from sepo.runs.log_writer import RunLog, note_preparation, note_rows
from sepo.scoring.hub import cached_if_unreachable, hub_access
from sepo.scoring.model_files import check_tokenizers
from sepo.scoring.models import load_scoring_models
from sepo.timing import Timing
from sepo.training.row_losses import RowLosses

logger = logging.getLogger(__name__)


def run_rto(
    model_args: Any, data_args: Any, training_args: Any, finetuning_args: Any, callbacks: Any, *, settings: RtoSettings
) -> None:
    """Run the stage; the first five arguments are the host's parsed objects, as its own workflows take them.

    Raises:
        SepoError: the data, a model or the judge is invalid.
    """
    timing, resolved = Timing(), settings.as_dict()
    logger.info("stage %s: %s", settings.stage, json.dumps(resolved))
    log_first_screen(settings)
    first = training_args.process_index == 0
    given = recipe_of(finetuning_args)
    if training_args.do_train and first:
        recorded = {name: resolved[name] for name in ("stage", "objective", "token_scorer")}
        note_preparation(Path(training_args.output_dir), **recorded)
    with cached_if_unreachable():
        tokenizer = load_tokenizer(model_args)["tokenizer"]
    template = get_template_and_fix_tokenizer(tokenizer, data_args)
    chat_format = chat_format_of(tokenizer, template, policy_in(given), model_args)
    if settings.oracle is not None:
        for key, spec in (("oracle_model", settings.oracle.oracle), ("oracle_base_model", settings.oracle.base)):
            check_tokenizers(tokenizer, spec, key=key, access=hub_access(model_args))
    losses = RowLosses()
    datasets = prompt_sets(given, settings, chat_format=chat_format, cutoff=data_args.cutoff_len, losses=losses)
    if first:
        losses.log()
    if training_args.do_train:
        check_prompts(settings.rto, training_args, prompts=len(datasets["train_dataset"]))
        if first:
            note_rows(Path(training_args.output_dir), losses)
    timing.lap("prompts")
    judge = open_rewards(settings.rewards, model_args=model_args, device=training_args.device)
    oracle = _oracle(settings, model_args, training_args)
    transformers.set_seed(training_args.seed)  # loading models advances the random state
    timing.lap("judge and oracle")
    with cached_if_unreachable():
        model = load_model(tokenizer, model_args, finetuning_args, training_args.do_train)
        ref_model, starting_policy = None, None
        if settings.rto.needs_reference:
            ref_model, starting_policy = load_reference(model, model_args, training_args, finetuning_args)
    timing.lap("policy")
    config = grpo_config(
        training_args, settings.rto, stop_ids=chat_format.stop_ids, shuffle=not finetuning_args.disable_shuffling
    )
    trainer = LlamaFactoryRtoTrainer(
        model,
        rto=settings.rto,
        stop_ids=list(chat_format.stop_ids),
        oracle=oracle,
        ref_model=ref_model,
        starting_policy=starting_policy,
        reward_check=ConstantRewardCheck(settings.rewards),
        finetuning_args=finetuning_args,
        reward_funcs=[JudgeReward(judge, decode=chat_format.decode, stop_ids=chat_format.stop_ids)],
        args=config,
        processing_class=tokenizer,
        callbacks=callbacks,
        **datasets,
    )
    if training_args.do_train:
        if trainer.is_world_process_zero():
            write_settings(Path(training_args.output_dir), settings, {}, recipe=given)
        trainer.add_callback(RunLog())
        trainer.add_callback(FirstScreen(settings))
        timing.lap("trainer")
        logger.info("before training: %s.", timing.laps)
        try:
            _train(trainer, training_args, finetuning_args)
        except torch.OutOfMemoryError as error:
            raise SepoError(
                f"out of memory: {first_line(error)} Lower per_device_train_batch_size, gradient_accumulation_steps "
                "(all responses of a step are sampled at once) or rto_max_new_tokens, or set "
                "oracle_model_quantization_bit: 4."
            ) from error
    if training_args.do_eval:
        metrics = trainer.evaluate(metric_key_prefix="eval")
        trainer.log_metrics("eval", metrics)
        trainer.save_metrics("eval", metrics)
    create_modelcard_and_push(trainer, model_args, data_args, training_args, finetuning_args)


def _oracle(settings: RtoSettings, model_args: Any, training_args: Any) -> OracleScorer | None:
    if settings.oracle is None:
        return None
    oracle, base = load_scoring_models(settings.oracle, model_args=model_args, device=training_args.device)
    return OracleScorer(
        oracle=oracle,
        base=base,
        batch_tokens=settings.score_batch_tokens,
        chunk_tokens=settings.rto.head_chunk_tokens,
    )


def _train(trainer: Any, training_args: Any, finetuning_args: Any) -> None:
    result = trainer.train(resume_from_checkpoint=training_args.resume_from_checkpoint)
    trainer.save_model()
    trainer.log_metrics("train", result.metrics)
    trainer.save_metrics("train", result.metrics)
    trainer.save_state()
    if trainer.is_world_process_zero() and finetuning_args.plot_loss:
        plot_loss(training_args.output_dir, keys=["loss", "reward", "kl", "eval_reward"])
