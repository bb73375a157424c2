"""The host's DPO trainer with sepo's training step in place of its forward pass and loss."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from llamafactory.train.dpo.trainer import CustomDPOTrainer
from torch import Tensor

from sepo.forward.lora import fuse_lora
from sepo.forward.recompute import recompute_less
from sepo.recipe.settings import RunSettings
from sepo.runs.token_samples import TokenRecord
from sepo.training.loading import register_numbered_cpus
from sepo.training.means import PairMeans
from sepo.training.saved_arguments import SavesNoSecrets
from sepo.training.split_backward import SplitsBatches
from sepo.training.starting_policy import StartingPolicy
from sepo.training.step import StepOutput, StepTokens, preference_step


class LlamaFactoryTrainer(SavesNoSecrets, SplitsBatches, PairMeans, CustomDPOTrainer):
    """Trainer with the host's optimizers, schedulers, samplers, engines, checkpoints and logging, and sepo's step.

    Args:
        settings: the run's settings.
        starting_policy: the reference of a LoRA run that continues from an adapter; None if another model or the
            policy without its adapter is the reference, or if none is needed.
        **kwargs: arguments of the host's DPO trainer.

    Attributes:
        record: recorder of selected tokens for some of the pairs, or None.
    """

    def __init__(self, *, settings: RunSettings, starting_policy: StartingPolicy | None = None, **kwargs: Any) -> None:
        self.settings = settings
        self.starting_policy = starting_policy
        self.record: TokenRecord | None = None
        self.batch_tokens = settings.batch_tokens
        super().__init__(**kwargs)
        self.check_batch_tokens()
        fuse_lora(self.model)
        recompute_less(self.model)
        register_numbered_cpus()

    def get_batch_loss_metrics(
        self, model: Any, batch: Any, train_eval: str = "train"
    ) -> tuple[Tensor, dict[str, float]]:
        """Compute the loss of one device batch in training; its metrics are logged by ``PairMeans``."""
        output = self._step(model, batch, watch=self._watch())
        self._training.add(output.sums)
        return output.loss, {}

    def evaluation_step(self, model: Any, batch: Mapping[str, Any], *, counted: int) -> StepOutput:
        """Run the step on a device batch of an evaluation."""
        return self._step(model, batch, counted=counted)

    def _step(
        self,
        model: Any,
        batch: Mapping[str, Any],
        *,
        watch: Callable[[StepTokens], None] | None = None,
        counted: int | None = None,
    ) -> StepOutput:
        return preference_step(
            model,
            batch,
            method=self.settings.method,
            reference=(lambda: self._reference(model)) if self.settings.runs_reference else None,
            chosen_nll_weight=self.ftx_gamma,
            chunk_tokens=self.settings.head_chunk_tokens,
            share_prompts=self.shares_prompts(),
            parts=self.parts(model),
            watch=watch,
            counted=counted,
        )

    def _watch(self) -> Callable[[StepTokens], None] | None:
        """Return the function that records the batch's selected tokens, or None at steps that are not recorded."""
        return None if self.record is None else self.record.watch(self.state.global_step + 1)

    @contextlib.contextmanager
    def _reference(self, model: Any) -> Iterator[Any]:
        """Yield the reference, as a model to run through the engine's own wrapper."""
        if self.ref_model is not None:
            yield self.ref_model
        elif self.starting_policy is not None:
            with self.starting_policy.active():
                yield model
        else:
            with self.accelerator.unwrap_model(model).disable_adapter():
                yield model
