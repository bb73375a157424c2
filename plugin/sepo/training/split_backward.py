"""Backward passes of a batch's parts under the engines of a ``transformers.Trainer``."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from sepo.errors import SepoError
from sepo.recipe.resolve import STEP_IN_BACKWARD
from sepo.training.batch_parts import Parts

if TYPE_CHECKING:
    from transformers import Trainer as _Base
else:
    _Base = object


class SplitsBatches(_Base):
    """Mixin for a ``transformers.Trainer`` that computes its loss with ``preference_step``."""

    batch_tokens: int | None = None
    """Maximum number of tokens in one forward pass; None for the whole device batch."""

    def check_batch_tokens(self) -> None:
        """Raise if ``batch_tokens`` is set and a step cannot have several backward passes.

        Raises:
            SepoError: if the optimizer changes weights during the backward pass.
        """
        optimizer = str(getattr(self.args.optim, "value", self.args.optim))
        if self.batch_tokens is not None and optimizer in STEP_IN_BACKWARD:
            raise SepoError(
                f"batch_tokens is {self.batch_tokens} and optim is {optimizer}, which changes the weights during each "
                "backward pass, but a split batch has several: remove batch_tokens, or use another optimizer."
            )

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> Tensor:
        """Run the trainer's own step, and keep its loss scaling for the backward passes of the parts."""
        self._scaled_by_items = num_items_in_batch is not None and self.model_accepts_loss_kwargs
        return super().training_step(model, inputs, num_items_in_batch)

    def shards_rows(self) -> bool:
        """Return whether rows are sharded over processes, so that none has a whole response."""
        config = getattr(self.accelerator, "parallelism_config", None)
        return any(getattr(config, name, False) for name in ("cp_enabled", "sp_enabled"))

    def shares_prompts(self) -> bool:
        """Return whether pairs may go through the model as one row; if not, log the reason."""
        from sepo.forward.sharing_support import warn_once

        if self.shards_rows():
            warn_once("rows are sharded over processes (context or sequence parallelism)")
            return False
        if getattr(self.args, "neftune_noise_alpha", None):
            warn_once("neftune_noise_alpha is set, whose noise depends on the length of a row")
            return False
        return True

    def parts(self, model: Any, *, scale: float | Tensor = 1.0) -> Parts | None:
        """Return how to split a device batch, or None if it is not split.

        Args:
            model: the model as wrapped by the engine.
            scale: factor of ``compute_loss`` on the mean over the device batch.
        """
        if self.batch_tokens is None:
            return None

        def backward(compute: Callable[[], Tensor]) -> Tensor:
            with self._unsynchronized(model):
                loss = compute()
                with torch.autocast(loss.device.type, enabled=False):
                    self._backward(loss * scale)
            return loss.detach()

        return Parts(self.batch_tokens, backward=backward, agree=self._largest)

    def _backward(self, loss: Tensor) -> None:
        """Scale the loss and run its backward pass, as at the end of the trainer's own ``training_step``."""
        from accelerate.utils import DistributedType

        if not self._scaled_by_items:
            loss = loss / self.current_gradient_accumulation_steps
        deepspeed = self.accelerator.distributed_type == DistributedType.DEEPSPEED
        self.accelerator.backward(loss, **({"scale_wrt_gas": False} if deepspeed else {}))

    @contextlib.contextmanager
    def _unsynchronized(self, model: Any) -> Iterator[None]:
        """Accumulate gradients on this process, as in a gradient accumulation step that is not the last one."""
        state = self.accelerator.gradient_state
        if not state.sync_gradients:  # not the last accumulation step: the trainer has disabled it already
            yield
            return
        state._set_sync_gradients(False)
        try:
            with self.accelerator.no_sync(model):
                yield
        finally:
            state._set_sync_gradients(True)

    def _largest(self, parts: int) -> int:
        if self.accelerator.num_processes == 1:
            return parts
        count = torch.tensor(parts, device=self.accelerator.device)
        torch.distributed.all_reduce(count, op=torch.distributed.ReduceOp.MAX)
        return int(count)
