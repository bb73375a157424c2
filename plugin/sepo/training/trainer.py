"""A ``transformers.Trainer`` for preference optimization without LLaMA-Factory or Axolotl."""

from __future__ import annotations

import contextlib
import copy
import logging
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Trainer, TrainingArguments
from transformers.integrations import is_deepspeed_zero3_enabled

from sepo.errors import SepoError
from sepo.forward.lora import fuse_lora
from sepo.objectives import Method
from sepo.training.encoded_pairs import PairCollator, check_row
from sepo.training.loading import register_numbered_cpus
from sepo.training.means import PairMeans
from sepo.training.router import prepare_router_loss
from sepo.training.saved_arguments import SavesNoSecrets
from sepo.training.split_backward import SplitsBatches
from sepo.training.starting_policy import StartingPolicy
from sepo.training.step import StepOutput, preference_step
from sepo.training.trainable_rows import groups_by_length

logger = logging.getLogger(__name__)

_WITHOUT_EFFECT = {"model_init": "pass model", "compute_loss_func": "the method is the loss; leave it out"}


class PreferenceTrainer(SavesNoSecrets, SplitsBatches, PairMeans, Trainer):
    """Trainer of a policy on preference pairs with any method.

    The loss of an optimizer step is the mean over its pairs, independent of their split into device batches. Metrics
    (see ``preference_step``) are means over the pairs since the last logging step; for evaluations see ``PairMeans``.

    Args:
        model: the policy: full weights or PEFT, on one device or under DDP.
        method: the resolved method, from ``sepo.objectives.resolve_method``.
        args: training arguments; ``remove_unused_columns`` is disabled in a copy of them.
        ref_model: the reference, for methods with one. None for the initial policy, which needs memory for one copy of
            its trainable weights (for PEFT, of the adapter).
        train_dataset: a list or data set of rows with ``prompt_ids``, ``chosen_ids`` and ``rejected_ids``
            (``encode_pairs``) and the other columns that the method needs (``score_rows``, ``reward_rows``,
            ``add_steps``).
        eval_dataset: the same for evaluations, or a dict of them.
        data_collator: replaces ``PairCollator``.
        chunk_tokens: number of tokens whose logits exist at a time; None for 64 MiB of logits.
        batch_tokens: maximum number of tokens in one forward pass: a larger device batch is split into parts of whole
            pairs, each with its own backward pass. The loss stays the mean over the pairs. None for no limit.
        router_aux_loss_coef: weight of the load-balancing loss of a mixture of experts: the model's own over the tokens
            of each pair, averaged over pairs (``sepo.forward.router_loss``); 0 for none.
        **kwargs: other arguments of ``transformers.Trainer``.

    Raises:
        SepoError: if rows lack columns that the method needs, the reference is the policy itself, a method with a
            reference runs under ZeRO-3 or FSDP, DataParallel would be used, the model has no router loss to weight, or
            an argument would have no effect.
    """

    def __init__(
        self,
        *,
        model: nn.Module,
        method: Method,
        args: TrainingArguments,
        ref_model: nn.Module | None = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        data_collator: Any = None,
        chunk_tokens: int | None = None,
        batch_tokens: int | None = None,
        router_aux_loss_coef: float = 0.0,
        **kwargs: Any,
    ) -> None:
        for name, advice in _WITHOUT_EFFECT.items():
            if kwargs.get(name) is not None:
                raise SepoError(f"{name} is set, which PreferenceTrainer does not support: {advice}.")
        if args.label_smoothing_factor:
            raise SepoError(
                f"label_smoothing_factor is {args.label_smoothing_factor}, which smooths token labels, expected 0: to "
                "smooth preferences, use resolve_method('dpo', label_smoothing=...)."
            )
        if groups_by_length(args):
            raise SepoError(
                "the rows are to be grouped by length, which PreferenceTrainer does not support (a pair's padding is "
                "not computed in any case): leave train_sampling_strategy, or group_by_length, at its default."
            )
        if data_collator is None:
            for dataset in (train_dataset, eval_dataset):
                _check_datasets(dataset, method)
            data_collator = PairCollator(method)
        args = copy.copy(args)
        args.remove_unused_columns = False  # the method's columns are not arguments of the model's forward
        self.method, self.chunk_tokens, self.batch_tokens = method, chunk_tokens, batch_tokens
        self.router_aux_loss_coef = router_aux_loss_coef
        super().__init__(
            model=model,
            args=args,
            data_collator=data_collator,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            **kwargs,
        )
        if self.args.n_gpu > 1:
            raise SepoError(
                f"{self.args.n_gpu} GPUs in one process would use DataParallel, expected one GPU per process: start "
                "with `torchrun --nproc_per_node N` or `accelerate launch`, or set CUDA_VISIBLE_DEVICES=0."
            )
        self.check_batch_tokens()
        prepare_router_loss(self, router_aux_loss_coef)
        fuse_lora(self.model)
        register_numbered_cpus()
        self.model_accepts_loss_kwargs = True  # compute_loss divides by the pairs of the step, not by its batches
        self._set_reference(ref_model)

    def _set_reference(self, ref_model: nn.Module | None) -> None:
        self.ref_model: Any = None
        self.starting_policy: StartingPolicy | None = None
        if not self.method.needs_reference:
            if ref_model is not None:
                logger.info("%s has no reference: ref_model is not used.", self.method.name)
            return
        if self.is_fsdp_enabled or is_deepspeed_zero3_enabled():
            engine = "FSDP" if self.is_fsdp_enabled else "ZeRO-3"
            raise SepoError(
                f"{self.method.name} compares the policy with a reference, which PreferenceTrainer does not support "
                f"under {engine}: train with a LLaMA-Factory stage, under DDP, or with a method without a reference "
                "(sepo, simpo, simpo_reg)."
            )
        if ref_model is self.model:
            raise SepoError(
                "ref_model is the policy itself, so every reward would be zero: leave it out to use a copy of the "
                "initial policy, or pass another model."
            )
        if ref_model is None:
            if self.method.token_scorer.compares_with_reference:
                logger.warning(
                    "the reference is the starting policy: at step 1 every alignment score is zero, so the rule floor "
                    "selects tokens spread evenly over each response until the policy has changed. A stronger "
                    "ref_model selects better."
                )
            self.starting_policy = StartingPolicy(self.model)
            return
        if not hasattr(ref_model, "hf_device_map"):
            ref_model.to(self.args.device)
        self.ref_model = ref_model.eval().requires_grad_(False)

    @contextlib.contextmanager
    def _reference(self, model: nn.Module) -> Iterator[nn.Module]:
        """Yield the reference, in the precision of the policy's own pass."""
        if self.starting_policy is not None:
            with self.starting_policy.active():
                yield model
        else:
            with self.accelerator.autocast():
                yield self.ref_model

    def _step(
        self,
        model: nn.Module,
        batch: Mapping[str, Any],
        *,
        scale: float | Tensor = 1.0,
        counted: int | None = None,
    ) -> StepOutput:
        return preference_step(
            model,
            batch,
            method=self.method,
            reference=lambda: self._reference(model),
            router_loss_weight=self.router_aux_loss_coef,
            chunk_tokens=self.chunk_tokens,
            share_prompts=self.shares_prompts(),
            parts=self.parts(model, scale=scale),
            counted=counted,
        )

    def get_batch_samples(
        self, epoch_iterator: Any, num_batches: int, device: torch.device
    ) -> tuple[list[Any], Tensor | int | None]:
        """Return the device batches of an optimizer step and the number of their pairs on all ranks."""
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        pairs = torch.tensor(sum(_pairs(batch) for batch in batches), device=device)
        return batches, self.accelerator.reduce(pairs, "sum")

    def compute_loss(
        self,
        model: nn.Module,
        inputs: Mapping[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """Compute a device batch's loss: its share of the mean over ``num_items_in_batch`` pairs, or its own mean."""
        pairs = _pairs(inputs)
        scale: float | Tensor = 1.0
        if num_items_in_batch is not None:
            # DDP averages over the ranks, while the pairs are those of all ranks.
            scale = pairs * self.accelerator.num_processes / num_items_in_batch
        output = self._step(model, inputs, scale=scale)
        self._training.add(output.sums)
        loss = output.loss * scale
        return (loss, {}) if return_outputs else loss

    def evaluation_step(self, model: nn.Module, batch: Mapping[str, Any], *, counted: int) -> StepOutput:
        """Run the step on a device batch of an evaluation."""
        return self._step(model, batch, counted=counted)


def _pairs(batch: Mapping[str, Any]) -> int:
    return len(batch["labels"]) // 2


def _check_datasets(dataset: Any, method: Method) -> None:
    """Check the first row of each data set that has a length; the collator checks all rows."""
    if isinstance(dataset, dict):
        for part in dataset.values():
            _check_datasets(part, method)
    elif dataset is not None and hasattr(dataset, "__len__"):
        if not len(dataset):
            raise SepoError("a data set has no rows, expected at least one pair.")
        check_row(dataset[0], method)
