"""TRL's configuration of GRPO from the host's training arguments, and checks of batches before a model is loaded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from typing import Any

from transformers import TrainingArguments

from sepo.errors import SepoError
from sepo.recipe.rto import RtoMethod


def check_batches(rto: RtoMethod, training_args: Any) -> None:
    """Raise if groups of responses do not fit into the batches, before a model is loaded.

    Args:
        rto: the method.
        training_args: the host's training arguments.

    Raises:
        SepoError: naming the numbers.
    """
    processes, samples = training_args.world_size, rto.samples
    device, steps = training_args.per_device_train_batch_size, training_args.gradient_accumulation_steps
    if training_args.do_train and device * steps * processes % samples:
        raise SepoError(
            f"an optimizer step has {device * steps * processes} responses (per_device_train_batch_size {device} x "
            f"gradient_accumulation_steps {steps} x {processes} processes), expected a multiple of rto_samples "
            f"({samples})."
        )
    evaluates = training_args.do_eval or training_args.eval_strategy != "no"
    if evaluates and training_args.per_device_eval_batch_size * processes % samples:
        raise SepoError(
            f"a batch of an evaluation has {training_args.per_device_eval_batch_size * processes} responses "
            f"(per_device_eval_batch_size {training_args.per_device_eval_batch_size} x {processes} processes), "
            f"expected a multiple of rto_samples ({samples})."
        )


def check_prompts(rto: RtoMethod, training_args: Any, *, prompts: int) -> None:
    """Raise if there are fewer prompts than an optimizer step needs: TRL would take no step.

    Args:
        rto: the method.
        training_args: the host's training arguments.
        prompts: number of prompts.

    Raises:
        SepoError: naming the numbers.
    """
    device, steps = training_args.per_device_train_batch_size, training_args.gradient_accumulation_steps
    needed = device * steps * training_args.world_size // rto.samples
    if training_args.do_train and prompts < needed:
        raise SepoError(
            f"there are {prompts} prompts, but an optimizer step has {needed} (per_device_train_batch_size x "
            f"gradient_accumulation_steps x processes / rto_samples); lower the batch, or add prompts."
        )


def grpo_config(training_args: Any, rto: RtoMethod, *, stop_ids: Sequence[int], shuffle: bool) -> Any:
    """Return TRL's configuration of a run.

    Args:
        training_args: the host's training arguments; all that TRL's configuration has as well is taken over.
        rto: the method.
        stop_ids: tokens that end a response.
        shuffle: whether prompts are shuffled.

    Returns:
        A ``trl.GRPOConfig``.
    """
    from trl.trainer.grpo_config import GRPOConfig  # needs the host's patch of transformers' look-up of packages

    common = {field.name: getattr(training_args, field.name) for field in fields(TrainingArguments) if field.init}
    return GRPOConfig(
        **{
            **common,
            "remove_unused_columns": False,
            "num_generations": rto.samples,
            "max_prompt_length": None,
            "max_completion_length": rto.max_new_tokens,
            "temperature": rto.temperature,
            "top_p": rto.top_p,
            "generation_kwargs": {"eos_token_id": list(stop_ids)},
            "beta": 0.0,  # references are run by RtoStep
            "epsilon": rto.clip,
            "num_iterations": rto.iterations,
            "scale_rewards": rto.scale,
            "loss_type": rto.loss_type,
            "shuffle_dataset": shuffle,
            "disable_dropout": True,  # as the host's DPO
        }
    )
