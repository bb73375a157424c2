"""Checks of a run with the load-balancing loss of a mixture of experts, before its first step."""

from __future__ import annotations

import math
from typing import Any

from sepo.errors import SepoError
from sepo.forward.head import causal_lm
from sepo.forward.router_loss import refusal_by_config


def check_router_loss(trainer: Any, weight: float) -> None:
    """Raise if the router loss is to be added and the run cannot have it.

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
    reason = refusal_by_config(causal_lm(trainer.model).config)
    if reason is not None:
        raise SepoError(reason)
    if trainer.shards_rows():
        raise SepoError(
            "rows are sharded over processes (context or sequence parallelism), so that no process has the router "
            "logits of a whole pair: remove the parallelism, or moe_aux_loss_coef (router_aux_loss_coef)."
        )
