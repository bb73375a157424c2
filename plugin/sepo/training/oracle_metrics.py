"""Metrics of a policy as an oracle, from the log-ratios of its tokens to the reference; they need no marked errors.

A policy trained by DPO is an oracle whose token scores are these log-ratios (SePO, arXiv 2408.13518, Eq. 24).
Evaluations of a method that compares all tokens with a reference (``Method.compares_all_tokens``) log them, so that its
best checkpoint can be kept (``metric_for_best_model``).
"""

from __future__ import annotations

import torch
from torch import Tensor

from sepo.score_store.summary import SHARE
from sepo.selection.select import select_tokens
from sepo.training.metrics import Metric, mean, ratio

ORACLE_METRICS = (
    "oracle/size",
    "oracle/concentration",
    "oracle/margin_per_size",
    "oracle/margin_per_drift",
    "oracle/separation",
    "oracle/lowest_token_accuracy",
)
"""Names of the metrics."""


def oracle_metrics(log_ratios: Tensor, mask: Tensor, *, pairs: int) -> dict[str, Metric]:
    """Return the metrics of a batch.

    Args:
        log_ratios: log pi_policy - log pi_reference in nats, [2B, T], the first B rows chosen.
        mask: bool [2B, T], the response tokens.
        pairs: B.

    Returns:
        ``oracle/size``: mean absolute log-ratio of a token. ``oracle/concentration``: share of a response's absolute
        log-ratios in the 30 % of its tokens with the largest ones, mean over responses; 0.3 if all are equal.
        ``oracle/margin_per_size``: sum over pairs of the log-ratios of the chosen response minus those of the rejected
        one, divided by the sum of the absolute log-ratios of both; 1 if every change of the policy separates the
        responses, about 0 if likelihoods fall on both sides alike. ``oracle/margin_per_drift``: the same sum divided
        by the sum over pairs of the absolute log-ratio of the chosen response. ``oracle/separation``: the mean of the
        highest 30 % of the chosen response's log-ratios minus that of the lowest 30 % of the rejected one's, over the
        common length of both, divided by its mean with the responses in both orders
        (``sepo.score_store.chance.Chance``); 1 for noise. ``oracle/lowest_token_accuracy``: share of the pairs whose
        lowest log-ratio is in the rejected response; ties count one half.

    Example:
        >>> log_ratios = torch.tensor([[0.5, 0.0, 0.0, 0.5], [0.0, -2.0, -1.0, 0.0]])
        >>> found = oracle_metrics(log_ratios, torch.ones(2, 4, dtype=torch.bool), pairs=1)
        >>> for name, each in found.items():
        ...     print(name, round(float(each.total / each.count), 3))
        oracle/size 0.5
        oracle/concentration 0.583
        oracle/margin_per_size 1.0
        oracle/margin_per_drift 4.0
        oracle/separation 2.0
        oracle/lowest_token_accuracy 1.0
    """
    values = torch.where(mask, log_ratios.detach().float(), 0.0)
    sizes, sums = values.abs(), values.sum(-1)
    totals, margins = sizes.sum(-1), sums[:pairs] - sums[pairs:]
    largest = select_tokens(sizes, mask, ratio=SHARE, largest=True)
    carried = torch.where(largest, sizes, 0.0).sum(-1) / totals.where(totals > 0, 1.0)
    shares = carried.where(totals > 0, SHARE)
    lowest = torch.where(mask, values, torch.inf).amin(-1)
    lower = (lowest[pairs:] < lowest[:pairs]).float() + 0.5 * (lowest[pairs:] == lowest[:pairs]).float()
    drifts, (separations, chance) = sums[:pairs].abs(), _separations(values, mask, pairs=pairs)
    return {
        "oracle/size": ratio(totals.sum(), mask.sum()),
        "oracle/concentration": mean(shares),
        "oracle/margin_per_size": ratio(margins.sum(), _positive(totals.sum())),
        "oracle/margin_per_drift": _over_pairs(margins, drifts),
        "oracle/separation": _over_pairs(separations, chance),
        "oracle/lowest_token_accuracy": mean(lower),
    }


def _over_pairs(values: Tensor, sizes: Tensor) -> Metric:
    """Return the ratio of two sums over pairs, [B] each, without those whose size is 0."""
    return ratio(values.where(sizes > 0, 0.0).sum(), _positive(sizes.sum()))


def _separations(values: Tensor, mask: Tensor, *, pairs: int) -> tuple[Tensor, Tensor]:
    """Return the separation of each pair, [B], and its mean over both orders of the responses, at least 0."""
    lengths = mask.sum(-1)
    shared = torch.minimum(lengths[:pairs], lengths[pairs:]).repeat(2)
    common = mask & (mask.cumsum(-1) <= shared[:, None])
    ends = []
    for largest in (True, False):
        selected = select_tokens(values, common, ratio=SHARE, largest=largest)
        ends.append(torch.where(selected, values, 0.0).sum(-1) / selected.sum(-1))
    highest, lowest = ends
    separations = highest[:pairs] - lowest[pairs:]
    return separations, (separations + highest[pairs:] - lowest[:pairs]) / 2


def _positive(value: Tensor) -> Tensor:
    """Return a denominator that keeps the metric if the policy is still the reference, whose ratios are then 0."""
    return value.clamp_min(torch.finfo(torch.float32).tiny)
