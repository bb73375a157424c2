"""How well token scores find wrong tokens, and proxies that can be measured without knowing them.

The measures of credit are those of ``sepo.credit.measures``, for all responses at once.
"""

import torch
from torch import Tensor
from torch.nn import functional

CONCENTRATION_SHARE = 0.3


def auroc(scores: Tensor, wrong: Tensor) -> float:
    """Return the mean over responses of P(a wrong token scores below a right one), ties one half; [N, T] each.

    Responses without a wrong or without a right token do not count.
    """
    first, second = scores[:, :, None], scores[:, None, :]
    below = (first < second).double() + 0.5 * (first == second).double()
    counted = wrong[:, :, None] & ~wrong[:, None, :]
    count = counted.sum((1, 2))
    return float(((below * counted).sum((1, 2))[count > 0] / count[count > 0]).mean())


def first_error(scores: Tensor, wrong: Tensor) -> float:
    """Return the share of responses whose lowest score is at their first wrong token, ties shared; [N, T] each.

    Responses without a wrong token do not count.
    """
    scores, wrong = scores[wrong.any(1)], wrong[wrong.any(1)]
    lowest = (scores == scores.amin(1, keepdim=True)).double()
    first = wrong.long().argmax(1, keepdim=True)
    return float((lowest.gather(1, first)[:, 0] / lowest.sum(1)).mean())


def margins(scores: Tensor) -> Tensor:
    """Return the sum of the chosen log-ratios minus that of the rejected ones, [N], from [N, 2, T]."""
    return scores[:, 0].sum(-1) - scores[:, 1].sum(-1)


def concentration(scores: Tensor) -> float:
    """Return the share of the total absolute score that the top 30 % of each response's tokens hold; [N, 2, T]."""
    sizes = scores.abs().flatten(0, 1)
    kept = max(1, int(CONCENTRATION_SHARE * sizes.shape[1] + 1e-9))
    return float((sizes.topk(kept).values.sum(1) / sizes.sum(1)).mean())


def agreement(first: Tensor, second: Tensor) -> float:
    """Return the mean rank correlation (Spearman) of two oracles' scores within the responses; [N, 2, T] each."""
    ranks = [each.flatten(0, 1).argsort(-1).argsort(-1).double() for each in (first, second)]
    centered = [each - each.mean(-1, keepdim=True) for each in ranks]
    return float(functional.cosine_similarity(*centered, dim=-1).mean())


def proxies(scores: Tensor, labels: Tensor, *, beta: float = 0.1) -> dict[str, float]:
    """Return what a user without marked tokens can measure of an oracle on held-out pairs.

    Args:
        scores: [N, 2, T] log-ratios of the oracle to its base, the better response first.
        labels: [N] 1 for pairs as they are, -1 for those whose label is flipped: what the user has is the label.
        beta: of the DPO loss.
    """
    signed = margins(scores) * labels
    chosen = torch.where(labels > 0, scores[:, 0].mean(-1), scores[:, 1].mean(-1))
    drift = float(chosen.mean())
    size = float(scores.abs().mean())
    return {
        "preference_accuracy": float(((signed > 0).double() + 0.5 * (signed == 0).double()).mean()),
        "dpo_loss": float(-functional.logsigmoid(beta * signed).mean()),
        "margin": float(signed.mean()),
        "drift": drift,
        "margin_over_spread": float(signed.mean() / signed.std()),
        "margin_over_size": float(signed.mean()) / size,
        "margin_over_drift": float(signed.mean()) / max(abs(drift), 1e-12),
        "concentration": concentration(scores),
        "size": size,
    }
