"""Means of a step's metrics over pairs, whatever the batches and processes in which a ``transformers.Trainer`` runs."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from sepo.errors import SepoError
from sepo.training.metrics import plain_numbers
from sepo.training.step import StepOutput

if TYPE_CHECKING:
    from transformers import Trainer as _Base
else:
    _Base = object


class Means:
    """Means of metrics from totals and counts (``StepOutput.sums``), accumulated in double precision."""

    def __init__(self) -> None:
        self._sums: dict[str, tuple[float, float]] = {}

    def add(self, sums: Mapping[str, tuple[float, float]]) -> None:
        """Add the totals and counts of a batch."""
        for name, (total, count) in sums.items():
            so_far = self._sums.get(name, (0.0, 0.0))
            self._sums[name] = (so_far[0] + total, so_far[1] + count)

    def reduced(self, accelerator: Any, *, batch_pairs: int) -> dict[str, float]:
        """Return the means over what all processes have added.

        Args:
            accelerator: the trainer's accelerator; all processes have the same names, and call this together.
            batch_pairs: number of pairs of a full device batch, to which ``select/tokens`` refers.
        """
        if not self._sums:
            return {}
        values = torch.tensor(list(self._sums.values()), dtype=torch.float32, device=accelerator.device)
        reduced = accelerator.reduce(values, "sum").tolist()
        means = plain_numbers({name: (total, count) for name, (total, count) in zip(self._sums, reduced, strict=True)})
        if "select/tokens" in means:
            means["select/tokens"] *= batch_pairs
        return means


class PairMeans(_Base):
    """Mixin for a ``transformers.Trainer`` that computes its loss with ``preference_step``, and logs means over pairs.

    In evaluations, the loss and every metric count each pair of the data set once, so that they depend neither on the
    batch size nor on the number of processes. A sampler that shards an evaluation fills the last batches of the
    processes with pairs from its beginning, which have been counted already. Metrics have the prefix of ``eval_loss``,
    are returned by ``evaluate`` and can be used as ``metric_for_best_model``.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._training, self._evaluation = Means(), Means()
        super().__init__(*args, **kwargs)
        self._check_dispatch()

    def _check_dispatch(self) -> None:
        """Raise if one process collates the batches of all, which are then cut by rows: half of a batch's rows are
        chosen, so that pairs would be torn apart."""
        dispatches = self.accelerator.dispatch_batches
        if dispatches is None:
            streams = (self.train_dataset, self.eval_dataset)
            dispatches = any(isinstance(rows, torch.utils.data.IterableDataset) for rows in streams)
        if dispatches and self.accelerator.num_processes > 1:
            raise SepoError(
                f"the first of {self.accelerator.num_processes} processes collates the batches of all "
                "(accelerator_config: dispatch_batches, or a data set without length), which tears pairs apart: set "
                "dispatch_batches: false."
            )

    @abstractmethod
    def evaluation_step(self, model: Any, batch: Mapping[str, Any], *, counted: int) -> StepOutput:
        """Run ``preference_step`` on a device batch of an evaluation, of which the first ``counted`` pairs count."""

    def prediction_step(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> tuple[Tensor, None, None]:
        """Evaluate one device batch; no logits are computed, so there are no predictions."""
        inputs = self._prepare_inputs(inputs)
        counted = self._counted_pairs(len(inputs["labels"]) // 2)
        with torch.no_grad(), self.compute_loss_context_manager():
            # A process without pairs of its own also runs the model: engines wait for every process.
            output = self.evaluation_step(model, inputs, counted=max(1, counted))
        loss = output.loss.detach()
        if counted:
            self._evaluation.add({"loss": (loss.item() * counted, counted), **output.sums})
        else:
            self._evaluation.add(dict.fromkeys(("loss", *output.sums), (0.0, 0.0)))
        return loss, None, None

    def _counted_pairs(self, pairs: int) -> int:
        """Return how many pairs of this process's batch, from the first, are not repetitions that fill it."""
        state = self.accelerator.gradient_state
        if not state.end_of_dataloader or state.remainder <= 0:
            return pairs
        # The remainder is distributed over the processes in order; ranks that share their rows share an index as well.
        sampler = state.active_dataloader.batch_sampler
        rank: int = getattr(sampler, "process_index", self.accelerator.process_index)
        return min(max(state.remainder - rank * pairs, 0), pairs)

    def evaluation_loop(self, *args: Any, metric_key_prefix: str = "eval", **kwargs: Any) -> Any:
        """Evaluate a data set, and replace the trainer's loss, which is a mean over batches, by that over pairs."""
        self._evaluation = Means()
        output = super().evaluation_loop(*args, metric_key_prefix=metric_key_prefix, **kwargs)
        means = self._evaluation.reduced(self.accelerator, batch_pairs=self.args.per_device_eval_batch_size)
        output.metrics.update({f"{metric_key_prefix}_{name}": value for name, value in means.items()})
        return output

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Log the trainer's entries, with the metrics since the last logging step at the logging steps of training."""
        if "loss" in logs:
            pairs = self.args.per_device_train_batch_size
            logs |= self._training.reduced(self.accelerator, batch_pairs=pairs)
        if "loss" in logs or "train_runtime" in logs:
            self._training = Means()
        super().log(logs, *args, **kwargs)
