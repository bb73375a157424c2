"""Preference accuracy and margins of a policy: log-probabilities of chosen minus rejected responses."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from sepo.evaluation.divergence import AnswerSums
from sepo.evaluation.estimates import estimate
from sepo.intervals import Estimate

Margins = Mapping[str, np.ndarray]
"""Margins of pairs (chosen minus rejected) in nats, by measure, float64 [N] each."""


@dataclass(frozen=True)
class Preference:
    """Preference accuracy and mean margin by one measure.

    Args:
        accuracy: share of pairs with a margin above 0.
        margin: mean margin in nats.
        ties: number of pairs with a margin of exactly 0, which count as wrong.
    """

    accuracy: Estimate
    margin: Estimate
    ties: int


def margins(chosen: AnswerSums, rejected: AnswerSums) -> Margins:
    """Compute the margins of pairs.

    Args:
        chosen: sums over the chosen responses.
        rejected: sums over the rejected responses, in the same order.

    Returns:
        ``summed``: margins of the summed log-probabilities; ``length_normalized``: of these divided by the number of
        tokens (SimPO's reward without its factor); with a reference, ``reward``: of the summed log-ratios to it (DPO's
        implicit reward divided by beta).
    """
    found = {
        "summed": chosen.logps - rejected.logps,
        "length_normalized": chosen.logps / chosen.tokens - rejected.logps / rejected.tokens,
    }
    if chosen.reference_logps is not None and rejected.reference_logps is not None:
        found["reward"] = (chosen.logps - chosen.reference_logps) - (rejected.logps - rejected.reference_logps)
    return found


def accuracy_and_margin(values: np.ndarray) -> tuple[float, float]:
    """Return the share of margins [N] above 0, and their mean."""
    return float((values > 0).mean()), float(values.mean())


def preference(found: Margins, *, seed: int = 0) -> dict[str, Preference]:
    """Compute accuracy and margin by measure, with bootstrap intervals over the pairs.

    Args:
        found: return value of ``margins``, with at least one pair.
        seed: seed of the bootstrap.
    """
    return {
        name: Preference(_estimate((values > 0), seed), _estimate(values, seed), int((values == 0).sum()))
        for name, values in found.items()
    }


def preference_change(before: Margins, after: Margins, *, seed: int = 0) -> dict[str, dict[str, Estimate]]:
    """Compute the effect of training: paired differences, after minus before.

    Args:
        before: margins of the initial policy.
        after: margins of the trained policy, on the same pairs.
        seed: seed of the bootstrap.

    Returns:
        By measure, ``accuracy`` and ``margin``; if an interval excludes 0, other pairs would hardly change the sign.
        ``reward`` is not included: a policy that is its own reference has none, and the change of its margin is that of
        ``summed``.
    """
    changed = {}
    for name in ("summed", "length_normalized"):
        right = (after[name] > 0).astype(np.float64) - (before[name] > 0)
        changed[name] = {"accuracy": _estimate(right, seed), "margin": _estimate(after[name] - before[name], seed)}
    return changed


def _estimate(values: np.ndarray, seed: int) -> Estimate:
    found = estimate(values, seed=seed)
    assert found is not None  # there is at least one pair
    return found
