"""Early stopping of the oracle in `sepo pipeline`: LLaMA-Factory's evaluation, best checkpoint and patience, by one
key."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sepo.errors import SepoError, nearest
from sepo.recipe.stage_names import is_sepo_stage

NEVER = "never"
"""Value of ``oracle.stop`` with which all steps are trained."""

STOP_METRICS: Mapping[str, tuple[str, bool]] = {
    "loss": ("eval_loss", False),
    "accuracy": ("eval_rewards/accuracies", True),
    "margin": ("eval_rewards/margins", True),
    "margin_per_size": ("eval_oracle/margin_per_size", True),
    "margin_per_drift": ("eval_oracle/margin_per_drift", True),
    "separation": ("eval_oracle/separation", True),
    "lowest_token": ("eval_oracle/lowest_token_accuracy", True),
    "concentration": ("eval_oracle/concentration", True),
}
"""Metric of the held-out pairs by value of ``oracle.stop``, and whether a greater one is better."""

_EVALUATIONS = 10
_PATIENCE = 3
_HELD_OUT = 0.1

DEFAULT_STOP = NEVER
"""Value of ``oracle.stop`` if the section of the oracle has none."""

BEST_STOP = "margin_per_size"
"""Value for ``oracle.stop: true``: the metric that picked the best oracles by the AUROC on known errors
(docs/scores.md#when-to-stop-training-an-oracle)."""


def read_stop(name: str, value: Any) -> str:
    """Return the value of ``oracle.stop`` from YAML or a command line.

    >>> read_stop("oracle.stop", True), read_stop("oracle.stop", "loss")
    ('margin_per_size', 'loss')

    Raises:
        SepoError: It is neither true nor false, nor ``NEVER`` or a key of ``STOP_METRICS``.
    """
    text = str(value)
    known = (NEVER, *STOP_METRICS)
    found = {"true": BEST_STOP, "false": NEVER}.get(text.lower(), text)
    if found not in known:
        raise SepoError(f"{name} is {value!r}, expected true, or one of {', '.join(known)}.{nearest(text, known)}")
    return found


def stopping_keys(stop: str, section: Mapping[str, Any], *, stage: str) -> dict[str, Any]:
    """Return the keys of the host that evaluate an oracle on held-out pairs, keep its best checkpoint and stop.

    Args:
        stop: ``NEVER``, or a key of ``STOP_METRICS``.
        section: the section of the oracle, whose keys take precedence.
        stage: the oracle's stage.

    Returns:
        The keys. A tenth of the pairs is held out, unless the section names others (``eval_dataset``); they are
        evaluated ten times, and training ends after three evaluations without improvement.

    Raises:
        SepoError: The stage of the oracle does not log the metric.
    """
    if stop == NEVER:
        return {}
    metric, greater = STOP_METRICS[stop]
    if metric.startswith("eval_oracle/") and not is_sepo_stage(stage):
        raise SepoError(
            f"oracle.stop is {stop}, but the oracle's stage is {stage}, which does not log {metric}; set oracle.stop "
            "to accuracy, loss or margin, or remove the keys of the section oracle that need this stage."
        )
    every = 1 / _EVALUATIONS
    held_out = {} if section.get("eval_dataset") else {"val_size": _HELD_OUT}
    made = {
        **held_out,
        "eval_strategy": "steps",
        "eval_steps": every,
        "save_strategy": "steps",
        "save_steps": every,
        "save_total_limit": 1,
        "load_best_model_at_end": True,
        "metric_for_best_model": metric,
        "greater_is_better": greater,
        "early_stopping_steps": _PATIENCE,
    }
    return {name: value for name, value in made.items() if name not in section}
