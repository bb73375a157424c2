"""Preparation of a run with the load-balancing loss of a mixture of experts, before its first step."""

from __future__ import annotations

import math
from typing import Any

from sepo.errors import SepoError
from sepo.forward.head import causal_lm
from sepo.forward.router_loss import refusal_by_config, without_own_loss


def prepare_router_loss(trainer: Any, weight: float) -> None:
    """Check that a run can have the router loss, if it is to be added, and disable the model's own.

    The step computes the loss. With ``output_router_logits`` in its configuration, which hosts set for this loss, a
    saved model could not generate: transformers would compute the loss of a new token with the mask of the whole text.

    Args:
        trainer: the trainer, with ``shards_rows``, its accelerator and its model.
        weight: weight of the router loss, 0 for none.

    Raises:
        SepoError: the weight is negative or not finite, the model declares no router logits, or no process has all
            tokens of a pair.
    """
    if not 0.0 <= weight < math.inf:
        raise SepoError(f"the coefficient of the router loss is {weight}, expected a finite number of at least 0.")
    if not weight:
        return
    inner = causal_lm(trainer.model)
    reason = refusal_by_config(inner.config)
    if reason is not None:
        raise SepoError(reason)
    if trainer.shards_rows():
        raise SepoError(
            "rows are sharded over processes (context or sequence parallelism), so that no process has the router "
            "logits of a whole pair: remove the parallelism, or moe_aux_loss_coef (router_aux_loss_coef)."
        )
    for owner, name, value in without_own_loss(inner):
        setattr(owner, name, value)
