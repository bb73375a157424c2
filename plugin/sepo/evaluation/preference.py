"""Preference accuracy and margins: how much more probable a policy finds chosen answers than rejected ones."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from sepo.evaluation.divergence import AnswerSums
from sepo.evaluation.estimates import Estimate, estimate

Margins = Mapping[str, np.ndarray]
"""Margins of pairs in nats by measure, float64 [N] each: chosen minus rejected."""


@dataclass(frozen=True)
class Preference:
    """How often and by how much chosen answers are ahead.

    Args:
        accuracy: share of pairs with a margin above 0.
        margin: mean margin in nats.
        ties: pairs with a margin of exactly 0, which count as wrong.
    """

    accuracy: Estimate
    margin: Estimate
    ties: int


def margins(chosen: AnswerSums, rejected: AnswerSums) -> Margins:
    """The margins of pairs.

    Args:
        chosen: the chosen answers.
        rejected: their partners.

    Returns:
        ``summed``: of the answers' log-probabilities; ``length_normalized``: of these divided by the answers' tokens
        (SimPO's reward without its factor); ``reward``, where there is a reference: of the summed log-ratios to it
        (DPO's implicit reward divided by beta).
    """
    found = {
        "summed": chosen.logps - rejected.logps,
        "length_normalized": chosen.logps / chosen.tokens - rejected.logps / rejected.tokens,
    }
    if chosen.reference_logps is not None and rejected.reference_logps is not None:
        found["reward"] = (chosen.logps - chosen.reference_logps) - (rejected.logps - rejected.reference_logps)
    return found


def accuracy_and_margin(values: np.ndarray) -> tuple[float, float]:
    """Share of margins [N] above 0, and their mean."""
    return float((values > 0).mean()), float(values.mean())


def preference(found: Margins, *, seed: int = 0) -> dict[str, Preference]:
    """Accuracy and margin by measure, with bootstrap intervals over the pairs.

    Args:
        found: as ``margins`` gives it, of at least one pair.
        seed: of the bootstrap.
    """
    return {
        name: Preference(_known((values > 0), seed), _known(values, seed), int((values == 0).sum()))
        for name, values in found.items()
    }


def preference_change(before: Margins, after: Margins, *, seed: int = 0) -> dict[str, dict[str, Estimate]]:
    """What training changed: differences of the same pairs, after minus before.

    Args:
        before: margins of the starting policy.
        after: margins of the trained one, on the same pairs.
        seed: of the bootstrap.

    Returns:
        By measure, ``accuracy`` and ``margin``; an interval that leaves 0 out says that other pairs would hardly turn
        the change around. ``reward`` is not among them: a policy that is its own reference has none, and the margin's
        change is that of ``summed``.
    """
    changed = {}
    for name in ("summed", "length_normalized"):
        right = (after[name] > 0).astype(np.float64) - (before[name] > 0)
        changed[name] = {"accuracy": _known(right, seed), "margin": _known(after[name] - before[name], seed)}
    return changed


def _known(values: np.ndarray, seed: int) -> Estimate:
    found = estimate(values, seed=seed)
    assert found is not None  # there is a pair
    return found
