"""Metrics of a step as totals and counts, so that those of a batch's parts add up to those of the batch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sepo.objectives import PreferenceOutput


@dataclass(frozen=True)
class Metric:
    """A mean as its total and count; both scalars, without gradient."""

    total: Tensor
    count: Tensor

    def __add__(self, other: Metric) -> Metric:
        return Metric(self.total + other.total, self.count + other.count)


def mean(values: Tensor) -> Metric:
    """Return the mean over pairs of values [B]."""
    return Metric(values.detach().float().sum(), torch.tensor(float(len(values)), device=values.device))


def ratio(total: Tensor, count: Tensor) -> Metric:
    """Return the ratio of two sums."""
    return Metric(total.detach().float(), count.detach().float())


def plain_sums(metrics: Mapping[str, Metric]) -> dict[str, tuple[float, float]]:
    """Return totals and counts as floats, with one device synchronization."""
    if not metrics:
        return {}
    totals = torch.stack([metric.total for metric in metrics.values()])
    counts = torch.stack([metric.count for metric in metrics.values()])
    both = torch.stack([totals, counts], dim=1).tolist()
    return {name: (total, count) for name, (total, count) in zip(metrics, both, strict=True)}


def plain_numbers(sums: Mapping[str, tuple[float, float]]) -> dict[str, float]:
    """Return the means; a metric for which nothing was counted has none and is left out."""
    return {name: total / count for name, (total, count) in sums.items() if count}


def reward_metrics(output: PreferenceOutput) -> dict[str, Metric]:
    """Return the metrics ``rewards/*`` and ``objective/*``."""
    chosen, rejected = output.chosen_rewards, output.rejected_rewards
    return {
        "rewards/chosen": mean(chosen),
        "rewards/rejected": mean(rejected),
        "rewards/accuracies": mean(chosen > rejected),
        "rewards/margins": mean(chosen - rejected),
        **{f"objective/{name}": mean(values) for name, values in output.metrics.items()},
    }


def token_metrics(logps: Tensor, *, mask: Tensor, selection: Tensor, pairs: int) -> dict[str, Metric]:
    """Return ``logps/*`` and ``select/*`` (``select/tokens`` per pair) of [2B, T] tensors, the first B rows chosen."""
    selected = selection.sum(-1)
    return {
        "logps/chosen": mean(logps[:pairs].sum(-1)),
        "logps/rejected": mean(logps[pairs:].sum(-1)),
        "select/chosen_ratio": ratio(selection[:pairs].sum(), mask[:pairs].sum()),
        "select/rejected_ratio": ratio(selection[pairs:].sum(), mask[pairs:].sum()),
        "select/tokens": mean(selected[:pairs] + selected[pairs:]),
    }


def effective_tokens(weights: Tensor, *, pairs: int) -> dict[str, Metric]:
    """Return ``select/*_effective``, the mean effective number of tokens of a response, (sum w)^2 / sum w^2.

    It is the number of selected tokens if their weights are equal, and smaller the more they differ.

    Args:
        weights: [2B, T], 0 where not selected, the first B rows chosen.
        pairs: B.
    """
    squares = weights.square().sum(-1)
    numbers = weights.sum(-1).square() / squares.where(squares > 0, 1.0)
    return {"select/chosen_effective": mean(numbers[:pairs]), "select/rejected_effective": mean(numbers[pairs:])}


def mean_by_side(name: str, values: Tensor, *, wanted: Tensor, pairs: int) -> dict[str, Metric]:
    """Return the means over the wanted tokens of each side; ``values`` [2B, T] are 0 elsewhere."""
    return {
        name.format("chosen"): ratio(values[:pairs].sum(), wanted[:pairs].sum()),
        name.format("rejected"): ratio(values[pairs:].sum(), wanted[pairs:].sum()),
    }


def added(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, Any]:
    """Add the entries of two mappings with the same names."""
    return {name: value + second[name] for name, value in first.items()}
