"""The step of sepo's stages in a host's DPO trainer: what every host's trainer shares."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from sepo.recipe.settings import RunSettings
from sepo.runs.token_samples import TokenRecord
from sepo.training.means import PairMeans
from sepo.training.saved_arguments import SavesNoSecrets
from sepo.training.split_backward import SplitsBatches
from sepo.training.starting_policy import StartingPolicy
from sepo.training.step import StepOutput, StepTokens, preference_step


class StageStep(SavesNoSecrets, SplitsBatches, PairMeans):
    """Mixin for a host's trainer: ``preference_step`` with the settings of a run, in training and in evaluations.

    Attributes:
        settings: the run's settings.
        chosen_nll_weight: weight of the negative log-likelihood of the chosen responses (``pref_ftx``).
        starting_policy: the reference of a LoRA run that continues from an adapter; None if another model or the
            policy without its adapter is the reference, or if none is needed.
        record: recorder of selected tokens for some of the pairs, or None.
    """

    settings: RunSettings
    chosen_nll_weight: float
    starting_policy: StartingPolicy | None = None
    record: TokenRecord | None = None

    def train_on(self, model: Any, batch: Mapping[str, Any]) -> StepOutput:
        """Run the step on a device batch of training, and add its metrics to those of the next logging step.

        Args:
            model: the policy, as the engine wraps it.
            batch: the collator's batch of 2B rows, the first B chosen.
        """
        watch = None if self.record is None else self.record.watch(self.state.global_step + 1)
        output = self._step(model, batch, watch=watch)
        self._training.add(output.sums)
        return output

    def evaluation_step(self, model: Any, batch: Mapping[str, Any], *, counted: int) -> StepOutput:
        """Run the step on a device batch of an evaluation, of which the first ``counted`` pairs count."""
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
            chosen_nll_weight=self.chosen_nll_weight,
            router_loss_weight=self.settings.router_loss_weight,
            chunk_tokens=self.settings.head_chunk_tokens,
            share_prompts=self.shares_prompts(),
            parts=self.parts(model),
            watch=watch,
            counted=counted,
        )

    @contextlib.contextmanager
    def _reference(self, model: Any) -> Iterator[Any]:
        """Yield the reference, as a model to run through the engine's wrapper."""
        ref_model = self.ref_model
        if ref_model is not None:
            yield ref_model
        elif self.starting_policy is not None:
            with self.starting_policy.active():
                yield model
        else:
            with self.accelerator.unwrap_model(model).disable_adapter():
                yield model
